"""How hard the properties of the core are tried: thoroughly, yet within seconds."""

from hypothesis import settings

settings.register_profile("core", max_examples=150, deadline=None)
settings.load_profile("core")
