"""Describes saves of books that contain only changes. No table changes."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0026"
down_revision = "0025"

_SCHEMA = r"""
COMMENT ON TABLE book_parts IS
    'The positions of a book from part 0 on: whole if books.body is \xc1, whole and then changes if it is \xc0.';
"""


def upgrade() -> None:
    """Changes a comment. Engines of the previous version continue to work, but fail to load a book saved with changes."""
    run_script(op.get_bind(), _SCHEMA)
