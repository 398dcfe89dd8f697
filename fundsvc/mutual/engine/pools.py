"""The sessions and the audits of the configured pools, each beside the session of its home partition."""

from collections.abc import Sequence

import structlog

from fundsvc.config.settings import Config
from fundsvc.core.contracts import partition_of
from fundsvc.engine.audit_loop import Pace
from fundsvc.engine.engine import Companion, Companions
from fundsvc.engine.ownership import Ownership
from fundsvc.metrics import Metrics
from fundsvc.mutual.engine.audit import PoolAuditor
from fundsvc.mutual.engine.session import PoolSession
from fundsvc.mutual.engine.terms_proposals import TermsProposals
from fundsvc.mutual.engine.unconfigured import UnconfiguredPools
from fundsvc.store.audits import WALKS

log = structlog.get_logger()


def pool_sessions(config: Config, metrics: Metrics) -> Companions:
    """Returns what creates the sessions of pools whose home an engine comes to own; warns of terms that can be farmed."""
    for name, warning in config.mutual.warnings.items():
        log.warning("terms can be farmed", pool=name, detail=warning)
    proposals, pace = TermsProposals(), Pace(config.audit.share / len(WALKS))

    def sessions(ownership: Ownership) -> Sequence[Companion]:
        homes = {name: partition_of(name, config.stream.partitions) for name in config.mutual.pools}
        here = [name for name, home in homes.items() if home == ownership.partition]
        settling = [PoolSession(config, metrics, ownership, name, proposals) for name in here]
        auditing = [PoolAuditor(config, metrics.mutual, ownership, name, pace) for name in here]
        return [*settling, *auditing, UnconfiguredPools(config, metrics.mutual, ownership)]

    return sessions
