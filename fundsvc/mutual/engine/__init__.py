"""Settles the streams of pools beside the partitions of the reserve."""
