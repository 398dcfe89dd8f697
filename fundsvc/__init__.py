"""fundsvc: the insurance fund of a derivatives exchange."""

__version__ = "0.1.0"
