"""Stores the mutual in PostgreSQL: the writer of a pool's owner, and readers. The statements are in queries.sql."""
