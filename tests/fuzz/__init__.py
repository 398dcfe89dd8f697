"""The fuzz test: any legal or illegal message, and a running engine that settles it, drops it as known, or keeps it.

    .venv/bin/pytest tests/fuzz                                     the short form, as scripts/test runs it
    .venv/bin/python -m tests.fuzz --messages 1000000 --seed 7      the long form; the seed repeats the messages

`messages` writes them, `oracle` says what must become of each event, `run` sends them to an engine and compares.
"""
