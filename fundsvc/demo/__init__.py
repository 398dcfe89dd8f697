"""A market to watch the service with: seeded, deterministic, streamed through the real stream.

Pure: `instruments` are its contracts, `prices` their price paths, `stakes` who holds what until when, `market` the events of
each step. Not pure: `feed` sends the steps, `watch` reads from the ledger what became of them, `screen` draws that, `show`
runs it all beside the service.
"""
