"""The command line. `running` loads the configuration and maps exceptions to exit codes; each command group has a module."""
