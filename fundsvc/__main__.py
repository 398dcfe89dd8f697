"""The command line's entry: `fundsvc`, or `python -m fundsvc`."""

from fundsvc.cli import adl, configuration, ledger, mutual, rejected, service, simulation, stream, target, token
from fundsvc.cli.running import cli

__all__ = ["adl", "configuration", "ledger", "mutual", "rejected", "service", "simulation", "stream", "target", "token"]


def main() -> None:
    """Runs the command that the arguments name."""
    cli()


if __name__ == "__main__":
    main()
