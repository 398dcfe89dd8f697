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
"""Default lifetime. A single token cannot be revoked, so a day bounds the effect of a stolen one."""

HOURS_MAX = 87_600.0
"""Ten years. A longer lifetime is an error of units."""


@cli.command()
def token(
    context: typer.Context,
    role: Annotated[Role, typer.Option(help="Role of the bearer.")],
    account: Annotated[str, typer.Option(help="Account of a trader.")] = "",
    subject: Annotated[str, typer.Option(help="Name of the bearer; requests of engines and risk are counted by it.")] = "",
    hours: Annotated[float, typer.Option(min=0.001, max=HOURS_MAX, help="Lifetime in hours.")] = HOURS,
    json: Json = False,
) -> None:
    """Mint and print an access token, signed with the configured secret or that of the data directory."""

    async def command(config: Config) -> int:
        minted = _minted(with_secret(config).token, role, account, subject, hours * 3600)
        if json:
            print_json({"token": minted, "role": role, "account": account, "subject": subject, "hours": hours})
        else:
            sys.stdout.write(minted + "\n")
        return DONE

    run(context, command)


def _minted(config: TokenConfig, role: Role, account: str, subject: str, seconds: float) -> str:
    """Mints a token and checks that the service accepts it; raises ValueError without a secret or with wrong claims."""
    if not config.secret:
        raise ValueError(
            "token.secret is not set and token.keys has public keys only: mint tokens with the issuer's private key"
            if config.keys
            else "token.secret is not set: set it to mint tokens"
        )
    if account and role != "trader":
        raise ValueError(f"a token with the role {role} has no account: omit --account")
    minted = mint(config, role, account, subject, seconds)
    try:
        Tokens(config).read(minted)
    except Problem as refusal:
        raise ValueError(str(refusal)) from None
    return minted
