"""The crash test: whatever dies, stops or loses its tail, the ledger ends as if nothing had happened.

Real engines (processes), the real PostgreSQL and Valkey, and an exchange that sends liquidations, duplicates, other terms and
poison, slowly enough to be interrupted. Meanwhile processes are killed and paused, even within a transaction; servers are
read-only or full, and lose the end of their files; connections are slow, half open, or cut before an answer; messages are
deleted before they are settled. Then the ledger is compared with that of a partition in memory which nothing disturbed: entry
for entry and hash for hash.

A second run is of deleveraging: an exchange whose funds run dry, and which answers ADL rounds in its own time. Orders, what
each of them asked of whom, and the ranks in the books must be those of the partition in memory, too. A third one posts its
letters to the HTTP side.

    .venv/bin/pytest tests/crash                                 the short form, as scripts/test runs it
    .venv/bin/python -m tests.crash --minutes 10 --seed 7        the long form; the seed repeats messages and schedule
    .venv/bin/python -m tests.crash --minutes 4 --seed 7 --part 4   the last minute of such a run alone

What is sent is in `letters` (liquidations), `exchange` (deleveraging), `poison` (what is refused, of every reason) and `books`
(snapshots). `sender` sends it onto the stream, `http_sender` to the HTTP side. What happens meanwhile is in `processes`,
`network`, `shortages` and `deletions`, and `schedule` puts it in order. `world` holds the processes, and `proxy` stands before
the servers. `oracle` is the ledger in memory, and `verdict` compares.

`run` puts them together.
"""
