"""The configuration: settings with defaults, and their validation."""

CONFIG_FILE_VARIABLE = "FUNDSVC_CONFIG"
"""Names the configuration file, for environments that cannot pass --config."""
