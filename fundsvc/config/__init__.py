"""The configuration: settings with defaults, and their validation."""
