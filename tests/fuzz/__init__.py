"""The fuzz test: a running engine settles, drops as duplicate, or rejects each event of arbitrary messages.

    .venv/bin/pytest tests/fuzz                                     the short form, as scripts/test runs it
    .venv/bin/python -m tests.fuzz --messages 1000000 --seed 7      the long form; the seed repeats the messages

`messages` writes the messages, `oracle` computes the expected outcomes, `run` sends them to an engine and compares.
"""
