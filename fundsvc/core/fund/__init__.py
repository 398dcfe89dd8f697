"""The fund of one contract: settlement, the sealed chain of entries, state, target size, and verification."""
