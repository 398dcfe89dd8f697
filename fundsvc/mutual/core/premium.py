"""Rule 3: the premium on the insured profits of an account's UTC day."""

from fundsvc.mutual.core.terms import PPM, Rules


def premium(profits: int, rules: Rules) -> int:
    """Returns P(x), the premium on all insured profits of a day, in atoms; the floor is the only rounding.

    P does not fall, so a trade that raises the profits from x to y owes P(y) - P(x), at least 0.
    """
    charged = _marginal(profits, rules) if rules.tier_mode == "marginal" else _slab(profits, rules)
    return charged // PPM


def _marginal(profits: int, rules: Rules) -> int:
    """Each band of the profits at the rate of its tier: the rate of a tier adds what it has above the tier before."""
    charged = rate_before = 0
    for start, rate in rules.premium_tiers:
        if profits <= start:
            break
        charged += (profits - start) * (rate - rate_before)
        rate_before = rate
    return charged


def _slab(profits: int, rules: Rules) -> int:
    """All profits at the rate of the highest tier that they reach."""
    return profits * max((rate for start, rate in rules.premium_tiers if start <= profits), default=0)
