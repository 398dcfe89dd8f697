"""The policies of funds for their readers, in fields and in words."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fundsvc.api.answers import Answer
from fundsvc.core.policy import DrawdownGuard, Policy

PAYERS = {
    "fund_then_adl": "The fund pays a loss first, ADL takes the rest.",
    "adl_then_fund": "ADL takes a loss first, the fund pays what ADL cannot take.",
}
ELIGIBLE = {"profitable": "positions with a profit", "all": "all positions"}
ALLOCATIONS = {
    "queue": "in the order of their ranks",
    "pro_rata": "all in proportion to their lots",
    "capped": "in the order of their ranks, each at most {share:.6g} % of its lots a round",
}
TAKEOVERS = {
    "capacity": "The fund takes over positions whose expected loss it can bear.",
    "adl": "The fund takes over positions only if ADL finds no candidates.",
    "fund": "The fund takes over all positions that the engine offers.",
}


class PolicyRules(Answer, frozen=True, kw_only=True):
    """A policy. `words` explain it in English.

    `guardStart` is the fall from the peak at which the drawdown guard starts, null without a guard.
    """

    waterfall: Literal["fund_then_adl", "adl_then_fund"]
    eligible: Literal["profitable", "all"]
    allocation: Literal["queue", "pro_rata", "capped"]
    takeover: Literal["capacity", "adl", "fund"]
    guard_start: float | None
    words: str


class FundPolicyAnswer(PolicyRules, frozen=True, kw_only=True):
    """A policy in force, and the contracts that have it. `words` explain it in English.

    `guardStart` is the fall from the peak at which the drawdown guard starts, null without a guard. An order names in
    `policyVersion` the version that it runs under.
    """

    symbols: list[str]


class PolicyVersionAnswer(PolicyRules, frozen=True, kw_only=True):
    """A policy that a contract has or had. `words` explain it in English.

    `version` is the number that an ADL order names in `policyVersion`; 0 is the policy before the first recorded version.
    `guardStart` is the fall from the peak at which the drawdown guard starts, null without a guard.
    """

    version: int


def policy_answers(policies: Iterable[tuple[str, Policy]]) -> list[FundPolicyAnswer]:
    """Returns the answers for the policies of symbols, one for each different policy."""
    symbols: dict[Policy, list[str]] = {}
    for symbol, policy in policies:
        symbols.setdefault(policy, []).append(symbol)
    return [FundPolicyAnswer(**_rules(policy), symbols=having) for policy, having in symbols.items()]


def policy_version_answers(versions: Mapping[int, Policy]) -> list[PolicyVersionAnswer]:
    """Returns the answers for the policies of a contract, by version."""
    return [PolicyVersionAnswer(**_rules(versions[number]), version=number) for number in sorted(versions)]


def _rules(policy: Policy) -> dict[str, Any]:
    guard = policy.drawdown_guard
    sentences = (
        PAYERS[policy.waterfall],
        f"ADL reduces {ELIGIBLE[policy.eligible]}, {ALLOCATIONS[policy.allocation].format(share=100 * policy.cap_share)}.",
        _guard_words(guard) if guard else "",
        TAKEOVERS[policy.takeover.mode],
    )
    return {
        "waterfall": policy.waterfall,
        "eligible": policy.eligible,
        "allocation": policy.allocation,
        "takeover": policy.takeover.mode,
        "guard_start": guard.start if guard else None,
        "words": " ".join(filter(None, sentences)),
    }


def _guard_words(guard: DrawdownGuard) -> str:
    begins = f"ADL also begins when the {guard.on} is {100 * guard.start:.6g} % below its peak of {guard.hours:g} hours"
    return f"{begins}, and ends at {100 * guard.stop:.6g} %."
