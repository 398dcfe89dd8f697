"""The live policies of a pool, in columns. The place of a policy is its row in them; a policy that ends frees its place."""

from array import array

from fundsvc.mutual.core.rows import PolicyRow, State
from fundsvc.mutual.core.terms import Rules


class Policies:
    """Columns by place. See `PolicyRow` for their meaning; `account` is the number of the account.

    `count` counts all policies, live or ended.
    """

    def __init__(self) -> None:
        self.count = 0
        self.number = array("Q")
        self.account = array("I")
        self.state = bytearray()
        self.terms = array("I")
        self.face = array("q")
        self.cap = array("q")
        self.issued_at = array("q")
        self.active_at = array("q")
        self.expires_at = array("q")
        self.paid = array("q")
        self.moved = array("q")
        self.entered: list[int] = []
        self._marked = bytearray()
        self._free = array("I")

    def __len__(self) -> int:
        """Returns the number of live policies."""
        return len(self.number) - len(self._free)

    def issue(self, account: int, terms: int, rules: Rules, now: int) -> int:
        """Issues a policy under the terms in force; returns its place."""
        self.count += 1
        row = PolicyRow(
            self.count,
            "",
            State.WAITING,
            terms,
            rules.face,
            rules.cap,
            now,
            now + rules.waiting_ms,
            now + rules.expiry_ms,
            0,
            0,
            0,
        )
        return self.put(account, row)

    def put(self, account: int, row: PolicyRow) -> int:
        """Adds a policy from its stored state; returns its place."""
        place = self._take_place()
        self.number[place] = row.policy
        self.account[place] = account
        self.state[place] = row.state
        self.terms[place] = row.terms
        self.face[place] = row.face
        self.cap[place] = row.cap
        self.issued_at[place] = row.issued_at
        self.active_at[place] = row.active_at
        self.expires_at[place] = row.expires_at
        self.paid[place] = row.paid
        self.moved[place] = row.moved
        self.entered[place] = row.entered
        return place

    def row(self, place: int, account: str) -> PolicyRow:
        """Returns the current state of a policy of the account with this name, which later events do not change."""
        return PolicyRow(
            self.number[place],
            account,
            State(self.state[place]),
            self.terms[place],
            self.face[place],
            self.cap[place],
            self.issued_at[place],
            self.active_at[place],
            self.expires_at[place],
            self.paid[place],
            self.moved[place],
            self.entered[place],
        )

    def mark(self, place: int) -> bool:
        """Marks a policy as changed; returns whether it was not marked."""
        if self._marked[place]:
            return False
        self._marked[place] = True
        return True

    def unmark(self, place: int) -> bool:
        """Removes the mark of a policy; returns whether it had one."""
        if not self._marked[place]:
            return False
        self._marked[place] = False
        return True

    def free(self, place: int) -> None:
        """Frees the place of a policy that has ended; a later policy may take it."""
        self._marked[place] = False
        self._free.append(place)

    def _take_place(self) -> int:
        if self._free:
            return self._free.pop()
        for column in (
            self.number,
            self.account,
            self.state,
            self.terms,
            self.face,
            self.cap,
            self.issued_at,
            self.active_at,
            self.expires_at,
            self.paid,
            self.moved,
            self.entered,
            self._marked,
        ):
            column.append(0)
        return len(self.number) - 1
