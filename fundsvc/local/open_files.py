"""How many files the process may open, of which connections are one each."""

import resource


def files_for(clients: int, own: int) -> int:
    """How many of so many clients there are files for, beside `own` of the process, at least 1.

    Raises the soft limit as far as that takes and the hard limit lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + own
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return clients
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    except (OSError, ValueError):  # a sandbox, such as that of our systemd units, lets nobody change limits
        allowed = soft
    return max(1, max(soft, allowed) - own)
