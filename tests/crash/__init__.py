"""The crash test: after any sequence of failures, the ledger equals that of an undisturbed run.

It runs real engines (processes), the real PostgreSQL and Valkey, and an exchange that sends liquidations, duplicates, contract
changes and invalid events. Meanwhile it kills and pauses processes, also within a transaction; makes servers read-only or
full, and truncates their files; slows, half-opens or cuts connections; and deletes messages before they are settled. Then it
compares the ledger with that of a partition in memory, entry for entry and hash for hash.

A second run tests ADL: the funds of the exchange run dry, and it answers ADL rounds with delays. It also compares the orders,
the lots that each round requests, and the ranks in the books. A third run posts its letters to the HTTP API.

    .venv/bin/pytest tests/crash                                 the short form, as scripts/test runs it
    .venv/bin/python -m tests.crash --minutes 10 --seed 7        the long form; the seed repeats messages and schedule
    .venv/bin/python -m tests.crash --minutes 4 --seed 7 --part 4   only the last minute of such a run

A letter is a message with the expected outcomes of its events. `letters` writes liquidations, `exchange` ADL, `poison` invalid
events for every rejection reason, and `books` snapshots. `sender` appends letters to the stream, `http_sender` posts them.
The disturbances are in `processes`, `network`, `shortages` and `deletions`; `schedule` orders them. `world` holds the
processes, `proxy` the connections to the servers. `oracle` is the ledger in memory, and `verdict` compares.

`run` combines them.
"""
