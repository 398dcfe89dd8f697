"""The fund of one contract: settlement, the hash chain of entries, state, target size, and verification."""
