"""Rule 6: an index shares a budget among all active policies at once; only policies that complete cost time.

The index A is what a weight of one has accrued since the beginning, times SCALE. A policy of weight w (its face in atoms) that
entered at A_in has accrued `w * (A - A_in) div SCALE`, at most its room. It completes when A reaches its finish tag F.
"""

from collections.abc import Generator

from fundsvc.mutual.core.finish_heap import FinishHeap
from fundsvc.mutual.core.policies import Policies
from fundsvc.mutual.core.slices import SLICE
from fundsvc.mutual.core.standing import SCALE


class Distribution:
    """The index `A`, the weight `W` of all active policies and the remainder `rem`, over the columns of `policies`.

    `moved` is what was moved of the active policies since they entered. Sums over them are kept: of rooms, and of w * A_in.
    """

    def __init__(self, policies: Policies, index: int = 0, rem: int = 0) -> None:
        self.index = index
        self.rem = rem
        self.weight = 0
        self.moved = 0
        self._policies = policies
        self._rooms = 0
        self._entered = 0
        self._finish = FinishHeap()

    def __len__(self) -> int:
        """Returns the number of active policies."""
        return len(self._finish)

    @property
    def shared(self) -> int:
        """S, the sum over the active policies of w * (A - A_in)."""
        return self.weight * self.index - self._entered

    @property
    def caps_left(self) -> int:
        """The most that the active policies can still accrue, in atoms (rule 5d)."""
        return self._rooms - self.shared // SCALE

    def enter(self, place: int) -> None:
        """A policy enters: it is activated or thaws."""
        policies = self._policies
        policies.entered[place], policies.moved[place] = self.index, 0
        self.restore(place)

    def restore(self, place: int) -> None:
        """Adds an active policy that entered before, from its columns."""
        policies = self._policies
        weight, room, entered = policies.face[place], self._room(place), policies.entered[place]
        self.weight += weight
        self.moved += policies.moved[place]
        self._rooms += room
        self._entered += weight * entered
        self._finish.add(place, entered - -room * SCALE // weight, policies.number[place])

    def due(self, place: int) -> int:
        """Returns what an active policy has accrued and what was not moved yet, in atoms."""
        return self._accrued(place) - self._policies.moved[place]

    def move(self, place: int) -> int:
        """Moves what is due of an active policy, which stays; returns it. The caller makes it payable."""
        due = self.due(place)
        self._policies.moved[place] += due
        self._policies.paid[place] += due
        self.moved += due
        return due

    def leave(self, place: int) -> int:
        """A policy leaves before its finish; returns what is due of it. Its excess goes to the remainder."""
        due, excess = self._leave(place)
        self.rem += excess
        return due

    def distribute(self, budget: int, completed: list[tuple[int, int]]) -> Generator[None, None, int]:
        """Distributes a budget (atoms) and the remainder, with pauses. Returns what is left without active policies.

        Adds the places of completed policies to `completed`, with what is due of each, by finish tag and number.
        """
        rest, self.rem = budget * SCALE + self.rem, 0
        while rest > 0 and self.weight:
            finish = self._finish.first_finish
            need = (finish - self.index) * self.weight
            if need > rest:
                step, rest = divmod(rest, self.weight)
                self.index += step
                break
            self.index, rest = finish, rest - need
            while self._finish and self._finish.first_finish == finish:
                place = self._finish.first
                due, excess = self._leave(place)
                completed.append((place, due))
                rest += excess
                if len(completed) % SLICE == 0:
                    yield
        returned = 0
        if not self.weight:
            returned, rest = divmod(rest, SCALE)
        self.rem = rest
        return returned

    def _room(self, place: int) -> int:
        """Returns what a policy could still be paid when it entered."""
        policies = self._policies
        return policies.cap[place] - policies.paid[place] + policies.moved[place]

    def _accrued(self, place: int) -> int:
        """Returns what an active policy has accrued since it entered, in atoms."""
        policies = self._policies
        return min(self._room(place), policies.face[place] * (self.index - policies.entered[place]) // SCALE)

    def _leave(self, place: int) -> tuple[int, int]:
        """Removes a policy; returns what is due of it, in atoms, and its excess, in atoms times SCALE."""
        policies = self._policies
        weight, entered, moved = policies.face[place], policies.entered[place], policies.moved[place]
        room, accrued = self._room(place), self._accrued(place)
        self.weight -= weight
        self.moved -= moved
        self._rooms -= room
        self._entered -= weight * entered
        self._finish.remove(place)
        policies.paid[place] += accrued - moved
        policies.moved[place] = policies.entered[place] = 0
        return accrued - moved, weight * (self.index - entered) - accrued * SCALE
