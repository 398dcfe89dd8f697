"""The positions of large books in parts, so that nobody reads or writes tens of MB at once."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0016"
down_revision = "0015"

_SCHEMA = """
CREATE TABLE book_parts (
    symbol text NOT NULL REFERENCES books ON DELETE CASCADE,
    part integer NOT NULL CHECK (part >= 0),
    body bytea NOT NULL,
    PRIMARY KEY (symbol, part)
);
COMMENT ON TABLE book_parts IS
    'The positions of a book that has more than fit into one part, from part 0 on. Valid where books.body is \\xc1.';
"""


def upgrade() -> None:
    """Adds a table. An engine writes a large book there when it keeps it next, and until then reads it from its body."""
    run_script(op.get_bind(), _SCHEMA)
