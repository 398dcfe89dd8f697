"""The streams of the partitions, on Redis or Valkey: alone in importing redis.

`client` connects, `source` reads a partition's stream, `producer` appends to the streams of all partitions.
"""
