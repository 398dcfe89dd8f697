"""The view `ledger`: entries with decimal prices, amounts and UTC times, for reading with psql."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0028"
down_revision = "0027"

_SCHEMA = """
CREATE FUNCTION decimal_of(atoms bigint, decimals smallint) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN atoms * ('1e-' || decimals)::numeric;
COMMENT ON FUNCTION decimal_of IS 'The exact decimal number of atoms of 10**-decimals.';

CREATE VIEW ledger AS
SELECT e.symbol, e.entry, e.seq, to_timestamp(e.ts / 1000.0) AT TIME ZONE 'UTC' AS at, e.kind, e.side, e.lots,
       decimal_of(e.price, c.price_decimals) AS price, decimal_of(e.bankruptcy_price, c.price_decimals) AS bankruptcy_price,
       decimal_of(e.change, c.settle_decimals) AS change, decimal_of(e.balance, c.settle_decimals) AS balance,
       decimal_of(e.uncovered, c.settle_decimals) AS uncovered, decimal_of(e.repaid, c.settle_decimals) AS repaid,
       c.settle_currency AS currency, e.trade_id, e.order_id, e.account, e.closes, e.forced, e.hash,
       e.recorded_at AT TIME ZONE 'UTC' AS recorded_at
FROM entries e JOIN contracts c USING (symbol);
COMMENT ON VIEW ledger IS
    'The entries with prices in units of the quote currency, amounts in units of `currency`, and times in UTC.';
"""


def upgrade() -> None:
    """Adds a view. Engines of the previous version continue to work."""
    run_script(op.get_bind(), _SCHEMA)
