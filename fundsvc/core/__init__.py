"""The rules of the fund, pure: no I/O, no clock, no logging, no suspension.

`numbers` and `contracts` turn text into exact integers and price a fill, `events` are the nouns that arrive,
`settlement` is the waterfall of one fund, `chain` seals each entry, `commitment` hides its account in that, `partition` applies
events in order, `replay` recomputes a ledger from its entries.
"""
