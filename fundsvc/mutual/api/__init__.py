"""HTTP routes and live topics of the mutual, which share the conventions of `fundsvc.api`."""
