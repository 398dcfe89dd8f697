"""The rules of the fund: pure functions and state, without I/O, clock, logging or await.

`events` defines what arrives. `numbers` and `contracts` turn text into exact integers and price a fill. `partition` applies
events in order: each contract is a `market` with a fund (`fund/`), a book and ADL orders (`adl/`). The effects are collected in
a `batch`. `fund/verification.py` recomputes a ledger from its entries.
"""
