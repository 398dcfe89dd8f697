"""Target sizes of funds, as the contract's owner last computed them."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0005"
down_revision = "0004"

_SCHEMA = """
CREATE TABLE targets (
    symbol text COLLATE "C" PRIMARY KEY,
    rule text NOT NULL,
    target numeric CHECK (target >= 0),
    fullness_low double precision NOT NULL,
    fullness_high double precision NOT NULL,
    leverage_min double precision NOT NULL,
    leverage_max double precision,
    explanation json,
    reason text NOT NULL,
    computed_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((target IS NULL) = (explanation IS NULL))
) WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE ON targets TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds the table; an engine of the previous version does not use it."""
    run_script(op.get_bind(), _SCHEMA)
