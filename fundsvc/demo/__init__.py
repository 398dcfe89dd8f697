"""A demo market: seeded, deterministic, sent through the real stream.

Pure modules: `instruments` (the contracts), `prices` (price paths), `stakes` (positions and their ends), `market` (the events
of each step), `matching` (the engine that answers ADL orders), `insured` (the events of a pool), `history` (the steps' times).
Modules with I/O: `feed` sends the steps and reads the ADL orders, `ledger` queries the ledger, `watch` collects changes,
`screen` draws them, `show` runs all of them with the service.
"""
