"""The command line's entry: `fundsvc`, or `python -m fundsvc`."""

from fundsvc.cli.commands import cli


def main() -> None:
    """Runs the command that the arguments name."""
    cli()


if __name__ == "__main__":
    main()
