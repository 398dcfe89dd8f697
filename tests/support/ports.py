"""Free ports for servers that tests start."""

import socket


def free_port():
    """Returns a port that no server uses; a server can use it again after a restart."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
