"""The means of the database's owner: altering rows, and sealing both chains again so that every hash is valid."""

from hashlib import sha256

import msgspec

from fundsvc.core.adl.records import AdlRecord
from fundsvc.core.fund.chain import GENESIS, Entry, link


async def unlock(connection):
    """Disables the triggers and constraints that refuse altered rows."""
    await connection.execute("SET session_replication_role = replica")


async def seal(connection, symbol):
    """Seals a contract's entries and ADL records again, and sets the fund to their ends."""
    entries = await connection.fetch("SELECT * FROM entries WHERE symbol = $1 ORDER BY entry", symbol)
    head = GENESIS
    for row in entries:
        head = link(head, Entry(*(row[name] for name in Entry.__struct_fields__ if name in row)))
        await connection.execute("UPDATE entries SET hash = $3 WHERE symbol = $1 AND entry = $2", symbol, row["entry"], head)
    adl_head, record = GENESIS, 0
    for row in await connection.fetch("SELECT * FROM adl_records WHERE symbol = $1 ORDER BY record", symbol):
        sealed, record = AdlRecord(*(row[name] for name in AdlRecord.__struct_fields__)), row["record"]
        adl_head = sha256(adl_head + msgspec.msgpack.encode(sealed)).digest()
        await connection.execute("UPDATE adl_records SET hash = $3 WHERE symbol = $1 AND record = $2", symbol, record, adl_head)
    last = entries[-1] if entries else {"entry": 0, "balance": 0}
    await connection.execute(
        "UPDATE funds SET head = $2, adl_head = $3, entry = $4, balance = $5, adl_record = $6 WHERE symbol = $1",
        symbol, head, adl_head, last["entry"], last["balance"], record,
    )  # fmt: skip
