"""The command line: `running` turns arguments into a running configuration and exceptions into exit codes; the commands of
the service, the ledger and the rejected events each have a module.
"""
