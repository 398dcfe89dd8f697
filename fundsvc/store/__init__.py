"""The ledger's database, PostgreSQL: alone in importing asyncpg.

`database` connects and names faults, `queries.sql` holds every statement, `writer` is the one way entries are written,
`leases` decides who may write, `reader` answers questions, `rollups` condenses, `schema` checks the
schema, which `migrations` makes.
"""
