"""The command that mints an access token."""

import sys
from typing import Annotated

import typer

from fundsvc.api.http.errors import Problem
from fundsvc.api.http.tokens import Role, Tokens, mint
from fundsvc.cli.running import DONE, Json, cli, print_json, run
from fundsvc.config.settings import Config, TokenConfig
from fundsvc.local.token_secret import with_secret

HOURS = 24.0
"""A token cannot be called back before it expires, short of changing the secret; a day bounds what a lost one does."""

HOURS_MAX = 87_600.0
"""Ten years; longer is a mistake of units."""


@cli.command()
def token(
    context: typer.Context,
    role: Annotated[Role, typer.Option(help="What its bearer may do.")],
    account: Annotated[str, typer.Option(help="The account of a trader.")] = "",
    subject: Annotated[str, typer.Option(help="Who bears it; requests of engines and risk are counted by it.")] = "",
    hours: Annotated[float, typer.Option(min=0.001, max=HOURS_MAX, help="How long it is good for.")] = HOURS,
    json: Json = False,
) -> None:
    """Mint an access token with the configured secret, or with the data directory's, and print it."""

    async def command(config: Config) -> int:
        minted = _minted(with_secret(config).token, role, account, subject, hours * 3600)
        if json:
            print_json({"token": minted, "role": role, "account": account, "subject": subject, "hours": hours})
        else:
            sys.stdout.write(minted + "\n")
        return DONE

    run(context, command)


def _minted(config: TokenConfig, role: Role, account: str, subject: str, seconds: float) -> str:
    """A token that the service will accept; raises ValueError where there is nothing to sign it with, or it would not be."""
    if not config.secret:
        raise ValueError(
            "only public keys are configured (token.keys): tokens are signed by whoever has the private ones"
            if config.keys
            else "token.secret is not set, so there is nothing to sign a token with"
        )
    if account and role != "trader":
        raise ValueError(f"a token with the role {role} is for no account: leave --account out")
    minted = mint(config, role, account, subject, seconds)
    try:
        Tokens(config).read(minted)
    except Problem as refusal:
        raise ValueError(str(refusal)) from None
    return minted
