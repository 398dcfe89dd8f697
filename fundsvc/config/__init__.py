"""Configuration: the settings with their defaults, and their validation."""
