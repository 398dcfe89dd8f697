"""The ledger's database, PostgreSQL. Only this package imports asyncpg.

`database` connects and converts driver errors into faults. `queries.sql` contains every statement. `writer` is the only module
that writes entries. `leases` decides which engine may write a partition. `reader` reads. `rollups` condenses entries by the
hour. `schema` checks the schema, which `migrations` contains.
"""
