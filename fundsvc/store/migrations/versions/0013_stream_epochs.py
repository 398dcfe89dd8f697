"""The stream server of each partition, the posters that confirmed its changes, and the duration of leases."""

from alembic import op

from fundsvc.store.migrations import run_script

revision = "0013"
down_revision = "0012"

_SCHEMA = """
CREATE TABLE stream_servers (
    partition integer PRIMARY KEY,
    run_id text NOT NULL,
    changes bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE stream_servers IS
    'The server that the stream of a partition was found on last, and how often it was another, or had lost something.';

CREATE TABLE posters (
    poster text PRIMARY KEY,
    epoch bigint NOT NULL
);
COMMENT ON TABLE posters IS 'Who asked for the ingest cursor in the present stream epoch: 1 and all changes of stream_servers.';
GRANT SELECT, INSERT, UPDATE ON stream_servers, posters TO fundsvc_service;
GRANT DELETE ON posters TO fundsvc_service;

ALTER TABLE partitions ADD COLUMN lease_seconds double precision;
COMMENT ON COLUMN partitions.lease_seconds IS 'How long the lease lasts from each renewal on.';
GRANT UPDATE (lease_seconds) ON partitions TO fundsvc_service;

ALTER TABLE engines ADD COLUMN leaves integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN engines.leaves IS 'How many partitions it leaves to others, as it does not bring them on.';
GRANT INSERT (leaves), UPDATE (leaves) ON engines TO fundsvc_service;
"""


def upgrade() -> None:
    """Adds them; an engine of the previous version renews leases without their duration."""
    run_script(op.get_bind(), _SCHEMA)
