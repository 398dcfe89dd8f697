"""A heap of the active policies by finish tag, then by number, from which any policy can be removed.

`heapq` cannot remove, and keys of policies that left would stay for years where policies seldom complete.
"""

from array import array

NUMBER_BITS = 48
"""A key is the finish tag, then this many bits of the policy's number: one integer compares both."""

NOWHERE = -1


class FinishHeap:
    """Places of policies, the one that finishes first on top. Adding and removing cost the logarithm of the size."""

    def __init__(self) -> None:
        self._heap = array("I")
        self._key: list[int] = []
        self._position = array("i")

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> int:
        """The place of the policy that finishes first."""
        return self._heap[0]

    @property
    def first_finish(self) -> int:
        """The smallest finish tag."""
        return self._key[self._heap[0]] >> NUMBER_BITS

    def add(self, place: int, finish: int, number: int) -> None:
        """Adds a policy that is not in the heap."""
        while len(self._key) <= place:
            self._key.append(0)
            self._position.append(NOWHERE)
        self._key[place] = finish << NUMBER_BITS | number
        self._heap.append(place)
        self._rise(len(self._heap) - 1, place)

    def remove(self, place: int) -> None:
        """Removes a policy that is in the heap."""
        position, last = self._position[place], self._heap.pop()
        self._position[place], self._key[place] = NOWHERE, 0
        if last != place:
            self._rise(self._sink(position), last)

    def _rise(self, position: int, place: int) -> None:
        """Puts a policy at a position or above it, and moves those down that finish later."""
        heap, keys, positions = self._heap, self._key, self._position
        key = keys[place]
        while position:
            parent = (position - 1) >> 1
            above = heap[parent]
            if keys[above] <= key:
                break
            heap[position] = above
            positions[above] = position
            position = parent
        heap[position] = place
        positions[place] = position

    def _sink(self, position: int) -> int:
        """Moves the earlier child up, level by level, from a position on; returns the position that becomes empty."""
        heap, keys, positions = self._heap, self._key, self._position
        end = len(heap)
        while (child := 2 * position + 1) < end:
            if child + 1 < end and keys[heap[child + 1]] < keys[heap[child]]:
                child += 1
            below = heap[child]
            heap[position] = below
            positions[below] = position
            position = child
        return position
