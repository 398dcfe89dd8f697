"""PgBouncer in front of the tests' PostgreSQL."""

import shutil
import socket
from contextlib import asynccontextmanager

from conftest import connected, with_section
from eventually import eventually
from ports import free_port

from fundsvc.local.server_process import Program, give

SETTINGS = """
[databases]
service = host=/proc/self/cwd dbname={database} user=fundsvc_service
owner = host=/proc/self/cwd dbname={database} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 40
{more}
"""
"""The working directory of the process has the socket of PostgreSQL."""


@asynccontextmanager
async def pgbouncer(servers, config, directory, mode, more=""):
    """Runs PgBouncer in a pool mode; yields the configuration of a service that uses it. `more` are lines of its settings."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/bin:/usr/bin")
    assert program, "pgbouncer is not installed: run scripts/ha, or apt-get install pgbouncer"
    await _admit(servers)
    port, database = free_port(), config.database.dsn.split("/")[3].split("?")[0]
    own = directory / "pgbouncer"
    own.mkdir()
    settings = own / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(port=port, database=database, mode=mode, more=more))
    if servers.user is not None:
        give(own, servers.user)
    with (directory / "pgbouncer.log").open("wb") as log:
        process = Program([program, str(settings)], (servers.run_directory, own), servers.user).spawn(log)
    try:
        await eventually(lambda: _listens(port))
        names = {"dsn": "service", "owner_dsn": "owner"}
        dsns = {key: f"postgresql://any@127.0.0.1:{port}/{name}" for key, name in names.items()}
        yield with_section(config, "database", **dsns)
    finally:
        process.terminate()
        process.wait()


async def _admit(servers):
    """Admits PgBouncer to PostgreSQL. Its user has no account, so peer authentication cannot admit it."""
    access = servers.directory / "postgres" / "pg_hba.conf"
    line = "local all fundsvc_service,postgres trust\n"
    if line not in access.read_text():
        access.write_text(line + access.read_text())
        async with connected(servers.owner_dsn) as connection:
            await connection.execute("SELECT pg_reload_conf()")


def _listens(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
