"""The sizes of the slices into which long computations are cut. A slice takes one or two milliseconds."""

SLICE = 100
"""Policies between two pauses where each changes, with an entry."""

SCAN = 2_000
"""Policies between two pauses where each is only looked at."""

CHECKS = 400
"""Accounts between two pauses where each is tested for its activity, and its policies are listed."""
