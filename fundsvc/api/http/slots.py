"""Limits concurrent use, for example of connections or exports, in total and by client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fundsvc.api.http.errors import TooManyRequests, Unavailable


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
    def limited(self, client: str, work: str, retry_seconds: int) -> Iterator[None]:
        """Holds a slot for the `work` of a request, such as "exports", while the context is open.

        Raises TooManyRequests if the client holds its limit, and Unavailable if all slots are taken.
        """
        if self.are_full_for(client):
            raise TooManyRequests(
                f"this client has {self.client_slots} running {work}, its limit: wait until one ends", retry_seconds
            )
        if self.are_full:
            raise Unavailable(f"the limit of {self._slots} running {work} is reached: retry shortly")
        with self.taken(client):
            yield

    @contextmanager
    def taken(self, *clients: str) -> Iterator[None]:
        """Holds a slot while the context is open."""
        self.take(*clients)
        try:
            yield
        finally:
            self.leave(*clients)
