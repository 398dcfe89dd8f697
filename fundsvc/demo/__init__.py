"""A market to watch the service with: seeded, deterministic, streamed through the real stream.

Pure: `instruments` are its contracts, `prices` their price paths, `stakes` who holds what until when, `market` the events of
each step, `matching` the engine that answers ADL orders. Not pure: `feed` sends the steps and brings the orders, `ledger` asks
and `watch` follows what became of them, `screen` draws that, `show` runs it all beside the service.
"""
