"""Archives of entries: stubs of files, the bounds up to which entries are in files, and the role that may remove entries."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0031"
down_revision = "0030"

_SCHEMA = """
CREATE TABLE archives (
    symbol text COLLATE "C" NOT NULL,
    first_entry bigint NOT NULL CHECK (first_entry > 0),
    last_entry bigint NOT NULL CHECK (last_entry >= first_entry),
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    last_hash bytea NOT NULL CHECK (octet_length(last_hash) = 32),
    seq bigint NOT NULL CHECK (seq > 0),
    clock bigint NOT NULL CHECK (clock >= 0),
    path text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes > 0),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    hours bytea NOT NULL CHECK (octet_length(hours) = 32),
    checkpoint bytea NOT NULL,
    signature bytea NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, last_entry)
);
COMMENT ON TABLE archives IS 'A file for each range of archived entries. A contract''s ranges begin at entry 1, without gaps.';
COMMENT ON COLUMN archives.seq IS 'The highest sequence of all entries up to the last one.';
COMMENT ON COLUMN archives.clock IS 'The chart clock at the last entry.';
COMMENT ON COLUMN archives.digest IS 'SHA-256 of the file.';
COMMENT ON COLUMN archives.hours IS 'SHA-256 of the rollups of the range, which no rebuild replaces.';
COMMENT ON COLUMN archives.checkpoint IS 'The checkpoint of the audit after the last entry, in MessagePack.';
COMMENT ON COLUMN archives.signature IS 'Under ledger.secret, over all other columns but archived_at; empty without a secret.';

CREATE TABLE archive_bounds (
    symbol text COLLATE "C" PRIMARY KEY,
    entry bigint NOT NULL CHECK (entry >= 0),
    removed bigint NOT NULL DEFAULT 0 CHECK (removed BETWEEN 0 AND entry)
);
COMMENT ON TABLE archive_bounds IS 'Entries up to `entry` are read from files, later ones from the table `entries`.';
COMMENT ON COLUMN archive_bounds.removed IS
    'Of the entries up to this one, the table `entries` has only those that other rows name.';

-- A stub joins the one before it, and describes entries of which none is missing. The fund has later ones.
CREATE FUNCTION check_archive() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before archives;
BEGIN
    SELECT * INTO before FROM archives WHERE symbol = NEW.symbol ORDER BY last_entry DESC LIMIT 1;
    IF NEW.first_entry <> coalesce(before.last_entry, 0) + 1
        OR NEW.previous_hash <> coalesce(before.last_hash, decode(repeat('00', 32), 'hex')) THEN
        RAISE EXCEPTION 'entries % to % of % do not join the archive', NEW.first_entry, NEW.last_entry, NEW.symbol
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF (SELECT count(*) FROM entries WHERE symbol = NEW.symbol AND entry BETWEEN NEW.first_entry AND NEW.last_entry)
            <> NEW.last_entry - NEW.first_entry + 1
        OR NOT EXISTS (SELECT FROM entries WHERE symbol = NEW.symbol AND entry = NEW.last_entry AND hash = NEW.last_hash)
        OR NOT EXISTS (SELECT FROM funds WHERE symbol = NEW.symbol AND entry > NEW.last_entry) THEN
        RAISE EXCEPTION 'the ledger of % does not have entries % to % with this hash, and a later one',
            NEW.symbol, NEW.first_entry, NEW.last_entry USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER archives_join BEFORE INSERT ON archives FOR EACH ROW EXECUTE FUNCTION check_archive();
CREATE TRIGGER archives_are_append_only BEFORE UPDATE OR DELETE ON archives FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER archives_are_never_emptied BEFORE TRUNCATE ON archives FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A bound is the end of a range. A lower one than before requires that all entries between are back.
CREATE FUNCTION check_archive_bound() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.entry > 0 AND NOT EXISTS (SELECT FROM archives WHERE symbol = NEW.symbol AND last_entry = NEW.entry) THEN
        RAISE EXCEPTION 'no archive of % ends with entry %', NEW.symbol, NEW.entry
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.entry - NEW.entry
            > (SELECT count(*) FROM entries WHERE symbol = NEW.symbol AND entry > NEW.entry AND entry <= OLD.entry) THEN
        RAISE EXCEPTION 'entries % to % of % are not all restored', NEW.entry + 1, OLD.entry, NEW.symbol
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER archive_bounds_are_ends BEFORE INSERT OR UPDATE ON archive_bounds
    FOR EACH ROW EXECUTE FUNCTION check_archive_bound();
CREATE TRIGGER archive_bounds_stay BEFORE DELETE ON archive_bounds FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER archive_bounds_are_never_emptied BEFORE TRUNCATE ON archive_bounds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Entries never change. Only those of an archive may be removed; a trigger per statement costs less than one per row.
CREATE FUNCTION refuse_unarchived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (SELECT symbol, max(entry) AS entry FROM removed GROUP BY symbol) r
        LEFT JOIN archive_bounds b USING (symbol)
        WHERE r.entry > coalesce(b.entry, 0)
    ) THEN
        RAISE EXCEPTION 'the ledger is append-only: delete of entries is refused, because no archive has them'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER entries_are_append_only ON entries;
CREATE TRIGGER entries_are_append_only BEFORE UPDATE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_leave_for_archives AFTER DELETE ON entries REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unarchived();

-- An owner without the right to create roles leaves this to an administrator: handbook, operations.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fundsvc_archiver') THEN
        CREATE ROLE fundsvc_archiver NOLOGIN;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$;
"""


def upgrade() -> None:
    """Adds the tables and the role. Engines and HTTP processes of the previous version must have ended before `fundsvc archive`
    first runs, because they read the table `entries` only.
    """
    run_script(op.get_bind(), _SCHEMA)
