"""The mutual: losses of traders that become policies, and a pool that shares its releases among the active ones.

It shares no money with the reserve, which the rest of the service keeps. `core` contains the rules, `codec` the wire format.
"""
