"""Limits concurrent use, for example of connections or exports, in total and by client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """At most `slots` concurrent uses, at most `client_slots` of them by one client."""

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
        """Returns whether a client holds all slots that it may hold."""
        return self._by_client[client] >= self.client_slots

    def take(self, *clients: str) -> None:
        """Takes one slot, counted once for each of these clients."""
        self._taken += 1
        self._by_client.update(clients)

    def leave(self, *clients: str) -> None:
        """Returns the slot that `take` took for these clients."""
        self._taken -= 1
        for client in clients:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    @contextmanager
    def taken(self, *clients: str) -> Iterator[None]:
        """Holds a slot while the context is open."""
        self.take(*clients)
        try:
            yield
        finally:
            self.leave(*clients)
