"""The commands that mint and revoke access tokens."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fundsvc.api.http.errors import Problem
from fundsvc.api.http.tokens import Role, Tokens, id_of, mint, read_revoked
from fundsvc.cli.actions import Why, operator, record_action
from fundsvc.cli.commands import cli
from fundsvc.cli.running import DONE, NO, Json, Terminal, print_json, run
from fundsvc.config.settings import Config, TokenConfig
from fundsvc.local.token_secret import with_secret

HOURS = 8.0
"""Default lifetime: a working day."""


@cli.command()
def token(
    context: typer.Context,
    role: Annotated[Role, typer.Option(help="Role of the bearer.")],
    account: Annotated[str, typer.Option(help="Account of a trader.")] = "",
    subject: Annotated[str, typer.Option(help="Name of the bearer; requests of engines and risk are counted by it.")] = "",
    hours: Annotated[float, typer.Option(min=0.001, help="Lifetime in hours, at most token.hours_max.")] = HOURS,
    why: Why = "",
    json: Json = False,
) -> None:
    """Mint and print an access token, signed with the configured secret or that of the data directory."""

    async def command(config: Config) -> int:
        minted = _minted(with_secret(config).token, role, account, subject, hours)
        token_id = id_of(minted)
        record_action(config.log, "token", why, role=role, subject=subject, hours=f"{hours:g}", token=token_id)
        if json:
            named = {"role": role, "account": account, "subject": subject, "hours": hours}
            print_json({"token": minted, "id": token_id, **named})
        else:
            sys.stdout.write(minted + "\n")
        return DONE

    run(context, command)


@cli.command(context_settings={"ignore_unknown_options": True})  # the ids of other issuers may begin with a hyphen
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="The token, or its id (jti), as the record of its minting has it.")],
    why: Why = "",
) -> None:
    """Revoke an access token: append its id to the file token.revoked. APIs reject it from their next request on.

    Exit with 1 if it is revoked already.
    """

    async def command(config: Config) -> int:
        path = Path(with_secret(config).token.revoked)
        if path == Path():
            raise ValueError("token.revoked is not set: set it to a file that all APIs read")
        token_id = id_of(token) if token.count(".") == 2 else token  # noqa: PLR2004 - header, claims, signature
        if not token_id or not token_id.isprintable() or "#" in token_id or token_id != token_id.strip():
            raise ValueError("the token has no id that a line can hold: it is valid until it expires, or its key is replaced")
        if not _append(config, path, token_id, why):
            Terminal(stderr=True).print(f"fundsvc: the token {token_id} is revoked already", style="red")
            return NO
        Terminal().print(f"revoked the token {token_id} in {path}")
        return DONE

    run(context, command)


def _append(config: Config, path: Path, token_id: str, why: str) -> bool:
    """Records the revocation and appends the id to the file; returns False if the file has it."""
    if path.exists() and token_id in read_revoked(path):
        return False
    record_action(config.log, "revoke", why, token=token_id)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with path.open("a") as file:
        file.write(f"{token_id}  # {at} {operator()} {' '.join(why.split())}".rstrip() + "\n")
    return True


def _minted(config: TokenConfig, role: Role, account: str, subject: str, hours: float) -> str:
    """Mints a token and checks that the service accepts it; raises ValueError without a secret or with wrong claims."""
    if not config.secret:
        raise ValueError(
            "token.secret is not set and token.keys has public keys only: mint tokens with the issuer's private key"
            if config.keys
            else "token.secret is not set: set it to mint tokens"
        )
    if account and role != "trader":
        raise ValueError(f"a token with the role {role} has no account: omit --account")
    if hours > config.hours_max:
        raise ValueError(f"--hours is {hours:g}: a token may be valid for {config.hours_max:g} hours (token.hours_max)")
    minted = mint(config, role, account, subject, hours * 3600)
    try:
        Tokens(config).read(minted)
    except Problem as refusal:
        raise ValueError(str(refusal)) from None
    return minted
