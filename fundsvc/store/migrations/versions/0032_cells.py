"""Cells: the name of this database among those of the ledger, and moves of partitions between them."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0032"
down_revision = "0031"

_SCHEMA = """
CREATE TABLE cell (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    name text COLLATE "C" NOT NULL,
    partitions integer NOT NULL CHECK (partitions > 0)
);
COMMENT ON TABLE cell IS 'The name of this database among the cells of the ledger, and the partitions of the whole ledger.';
INSERT INTO cell (name, partitions) SELECT 'main', count(*) FROM partitions HAVING count(*) > 0;

ALTER TABLE partitions
    ADD COLUMN generation bigint NOT NULL DEFAULT 1 CHECK (generation > 0),
    ADD COLUMN moving_to text COLLATE "C";
COMMENT ON TABLE partitions IS 'The partitions that this cell holds.';
COMMENT ON COLUMN partitions.generation IS
    'Rises with each move. Of several cells with a partition, the highest one holds it.';
COMMENT ON COLUMN partitions.moving_to IS
    'The cell to which the partition moves. No engine owns it here until the move is undone.';

CREATE TABLE arriving (
    partition integer PRIMARY KEY,
    generation bigint NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE arriving IS
    'Partitions that move here. Their entries and ADL records are copied first; no statement shows them.';

CREATE TABLE copied (
    symbol text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (symbol, source)
);
COMMENT ON TABLE copied IS 'Copies of entries and ADL records up to these numbers equal their originals by checksum.';

CREATE TABLE departed (
    symbol text COLLATE "C" PRIMARY KEY,
    partition integer NOT NULL,
    generation bigint NOT NULL
);
COMMENT ON TABLE departed IS 'Contracts whose partition is now in another cell: the rows that are left here may be deleted.';

CREATE FUNCTION refuse_change_of_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND EXISTS (SELECT FROM departed d WHERE d.symbol = OLD.symbol) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the ledger is append-only: % of % is refused', lower(TG_OP), TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
COMMENT ON FUNCTION refuse_change_of_ledger IS 'Refuses every change but the deletion of what another cell holds.';
CREATE OR REPLACE TRIGGER adl_records_are_append_only BEFORE UPDATE OR DELETE ON adl_records
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_ledger();

CREATE OR REPLACE TRIGGER archives_are_append_only BEFORE UPDATE OR DELETE ON archives
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_ledger();
CREATE OR REPLACE TRIGGER archive_bounds_stay BEFORE DELETE ON archive_bounds
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_ledger();

-- Entries may be removed if an archive or another cell has them.
CREATE OR REPLACE FUNCTION refuse_unarchived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT symbol, max(entry) AS entry FROM removed GROUP BY symbol) r
        LEFT JOIN archive_bounds b USING (symbol)
        WHERE r.entry > coalesce(b.entry, 0) AND NOT EXISTS (SELECT FROM departed d WHERE d.symbol = r.symbol)
    ) THEN
        RAISE EXCEPTION 'the ledger is append-only: delete of entries is refused, because no archive has them'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;

-- The stubs of an arriving partition were checked in the cell that it leaves. Its archived entries are not copied.
CREATE FUNCTION is_arriving(text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM contracts c JOIN arriving a USING (partition) WHERE c.symbol = $1)
$$;
COMMENT ON FUNCTION is_arriving IS 'Whether the partition of a contract moves here.';
CREATE OR REPLACE TRIGGER archives_join BEFORE INSERT ON archives
    FOR EACH ROW WHEN (NOT is_arriving(NEW.symbol)) EXECUTE FUNCTION check_archive();

CREATE FUNCTION refuse_change_of_policies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND NOT EXISTS (SELECT FROM partitions p WHERE p.partition = OLD.partition) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the ledger is append-only: % of % is refused', lower(TG_OP), TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE OR REPLACE TRIGGER policies_are_append_only BEFORE UPDATE OR DELETE ON policies
    FOR EACH ROW EXECUTE FUNCTION refuse_change_of_policies();
"""


def upgrade() -> None:
    """Adds tables, columns and triggers. Engines of the previous version continue to work, but must not run during a move."""
    run_script(op.get_bind(), _SCHEMA)
