"""A pool over a simulated market: what policies are paid, and what losses brought about on purpose would get back.

`market` draws the events from a seed, `simulate` applies them to the core and collects the outcome, `report` draws it.
"""
