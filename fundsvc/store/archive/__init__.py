"""Archived entries: their files, the reads of them, and the moves between the table `entries` and the files."""
