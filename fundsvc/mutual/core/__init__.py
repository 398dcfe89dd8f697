"""The rules of the mutual: pure functions and state, without I/O, clock, logging or await. Every number is an integer.

`terms` and `events` define what a pool is and what arrives. `pool` applies events in order: `accounts` keep cover, losses and
profits, `premium` prices profits, `policies` and `distribution` keep policies and what they accrue, `cutoff` takes the steps of
a cut-off. `chain` defines the ledger entries, `batch` collects the effects for one transaction, and `rows` are stored states.
"""
