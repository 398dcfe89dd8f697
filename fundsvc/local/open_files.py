"""The limit of the process's open files. Each connection needs one."""

import resource


def files_for(clients: int, own: int) -> int:
    """Returns how many of `clients` connections the limit allows beside `own` other files, at least 1.

    Raises the soft limit as far as needed and as the hard limit allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + own
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return clients
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    except (OSError, ValueError):  # a sandbox, such as that of the systemd units, forbids it
        allowed = soft
    return max(1, max(soft, allowed) - own)
