"""The work behind the commands: audit, export, delivery and conversion of recordings, vectors."""
