"""The crash test: whatever dies, stops or loses its tail, the ledger ends as if nothing had happened.

Real engines (processes), the real PostgreSQL and Valkey, and an engine of the exchange that sends liquidations, duplicates and
garbage, slowly enough to be interrupted. Meanwhile engines are killed and paused, even within a transaction, PostgreSQL is
stopped and killed, Valkey is killed and loses the tail of its file. Then the ledger is compared with that of a partition in
memory which nothing disturbed: entry for entry and hash for hash.

A second run is of deleveraging: an exchange whose funds run dry, and which answers ADL rounds in its own time. Orders, what
each of them asked of whom, and the ranks in the books must be those of the partition in memory, too.

    .venv/bin/pytest tests/crash                                 the short form, as scripts/test runs it
    .venv/bin/python -m tests.crash --minutes 10 --seed 7        the long form; the seed repeats messages and schedule

`letters` and `exchange` are what is sent, `sender` sends it, `world` holds the processes, `disturbances` is what befalls them,
`verdict` is what must be true in the end, `run` puts them together.
"""
