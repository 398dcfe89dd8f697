"""The streams of the partitions, on Redis or Valkey. Only this package imports redis.

`client` connects. `source` reads a partition's stream. `producer` appends to the streams of all partitions. `announcer`
publishes ADL rounds, and `announcements` reads them.
"""
