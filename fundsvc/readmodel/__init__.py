"""What read-only processes keep in memory: the tail of the ledger and the ADL books."""
