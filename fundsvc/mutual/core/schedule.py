"""What is to be looked at in each coming cut-off, so that a cut-off does not look at all policies."""

from array import array


class Schedule:
    """Numbers by cut-off: four bytes each. A number may be listed where it no longer belongs; the reader checks."""

    def __init__(self) -> None:
        self._listed: dict[int, array[int]] = {}

    def add(self, cutoff: int, number: int) -> None:
        """Lists a number at a cut-off (ms)."""
        listed = self._listed.get(cutoff)
        if listed is None:
            listed = self._listed[cutoff] = array("I")
        listed.append(number)

    def take(self, cutoff: int) -> "array[int]":
        """Returns the numbers of a cut-off in the order in which they were added, and forgets them."""
        return self._listed.pop(cutoff, array("I"))
