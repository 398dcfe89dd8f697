"""How much there may be at a time, of connections or of long answers: in all, and of each client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """Grants `slots` of something at a time, of which one client has at most `client_slots`."""

    def __init__(self, slots: int, client_slots: int) -> None:
        self._slots = slots
        self.client_slots = min(slots, client_slots)
        self._taken = 0
        self._by_client: Counter[str] = Counter()

    @property
    def are_full(self) -> bool:
        """Whether all slots are taken."""
        return self._taken >= self._slots

    def are_full_for(self, client: str) -> bool:
        """Whether a client has as many as it may have."""
        return self._by_client[client] >= self.client_slots

    def take(self, *clients: str) -> None:
        """Takes a place, which counts as one of each of these clients."""
        self._taken += 1
        self._by_client.update(clients)

    def leave(self, *clients: str) -> None:
        """Gives it back."""
        self._taken -= 1
        for client in clients:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    @contextmanager
    def taken(self, *clients: str) -> Iterator[None]:
        """Has a place for as long as the context is open."""
        self.take(*clients)
        try:
            yield
        finally:
            self.leave(*clients)
