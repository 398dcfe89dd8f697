"""Runs conformance vectors, language-neutral examples of the rules, through the decoder, settlement and ADL.

A vector is a JSON file: a contract, the initial fund, a policy, events, and the complete expected outcome. Amounts are decimal
strings in the settlement currency, prices are decimal strings. Absent `symbol` and `ts` of an event have defaults. Events that
the service rejects change nothing; the outcome lists them.
"""

from collections.abc import Iterator
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fundsvc.config.settings import CurrencyConfig
from fundsvc.core.adl.order import OrderState, Origin, State
from fundsvc.core.adl.records import terms_of
from fundsvc.core.batch import Batch
from fundsvc.core.contracts import Contract, contract_of
from fundsvc.core.events import AdlEnd, AdlFill, Fill, Mark, Position, Reason, Rejection, Side, Takeover, Unwind
from fundsvc.core.fund.chain import Kind
from fundsvc.core.fund.inventory import Holding
from fundsvc.core.fund.settlement import Fund, FundState
from fundsvc.core.numbers import INT64_MAX, format_units, to_units
from fundsvc.core.partition import Partition
from fundsvc.core.policy import Policy
from fundsvc.wire.codec import Message, decode

Amount = str
"""A decimal string, compared in its shortest form, so that "100.0" equals "100"."""

_MONEY = {
    *("change", "balance", "uncovered", "repaid", "outstanding", "recovered"),
    *("unrealisedLong", "unrealisedShort", "equity", "capacity"),
}
_PRICES = {"price", "bankruptcyPrice"}
"""The expected fields that are amounts, and those that are prices."""

_OF_A_CONTRACT = {event.__struct_config__.tag for event in (Fill, Takeover, Unwind, Mark, Position, AdlFill, AdlEnd)}
"""Types of events that name a symbol."""


class VectorError(ValueError):
    """A file or value is not a vector; the message names the place."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of a vector's parts. Unknown keys are errors, so that a misspelt expectation cannot pass."""


class StartingFund(_Part, frozen=True):
    """The fund before the first event."""

    balance: Amount = "0"
    outstanding: Amount = "0"


class ExpectedEntry(_Part, frozen=True):
    """A ledger entry."""

    entry: int
    kind: Kind
    change: Amount
    balance: Amount
    uncovered: Amount
    repaid: Amount
    side: Side | UnsetType = UNSET
    lots: int | UnsetType = UNSET
    price: Amount | UnsetType = UNSET
    bankruptcy_price: Amount | UnsetType = UNSET
    closes: int | UnsetType = UNSET
    forced: bool | UnsetType = UNSET


class ExpectedFund(_Part, frozen=True):
    """The fund after the last event. `unrealised_long`, `unrealised_short` and `equity` are null without a mark.

    `capacity` is that at the last applied event's time, `head` the hash of the last entry as hex digits.
    """

    balance: Amount
    outstanding: Amount
    unrealised_long: Amount | UnsetType | None = UNSET
    unrealised_short: Amount | UnsetType | None = UNSET
    equity: Amount | UnsetType | None = UNSET
    capacity: Amount | UnsetType = UNSET
    head: str | UnsetType = UNSET


class ExpectedTranche(_Part, frozen=True):
    """A tranche of the inventory; `entry` is its takeover entry, `promised` are the lots promised to open orders."""

    entry: int
    lots: int
    promised: int
    price: Amount
    forced: bool


class ExpectedInventory(_Part, frozen=True):
    """The tranches with lots left, the oldest first."""

    long: tuple[ExpectedTranche, ...]
    short: tuple[ExpectedTranche, ...]


class ExpectedRejection(_Part, frozen=True):
    """An event that is rejected: its index, and the reason."""

    event: int
    reason: Reason


class Allocated(_Part, frozen=True):
    """The allocation of one account in a round."""

    account: str
    lots: int


class ExpectedOrder(_Part, frozen=True):
    """An ADL order after the last event; `cause` is the number of the shortfall's or takeover's entry."""

    cause: int
    reduce: Literal["long", "short"]
    lots: int
    price: Amount
    uncovered: Amount
    recovered: Amount
    state: State
    rounds: tuple[tuple[Allocated, ...], ...]
    origin: Origin | UnsetType = UNSET
    executed: int | UnsetType = UNSET


class Expectation(_Part, frozen=True):
    """The complete expected outcome of a vector. A vector without takeovers may omit what only these have."""

    entries: tuple[ExpectedEntry, ...]
    fund: ExpectedFund
    adl: tuple[ExpectedOrder, ...]
    duplicates: int
    inventory: ExpectedInventory | UnsetType = UNSET
    rejected: tuple[ExpectedRejection, ...] | UnsetType = UNSET


class Vector(_Part, frozen=True):
    """A vector as it is in the file; `contract` is KuCoin's object, events are the wire's."""

    name: str
    contract: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    expect: Expectation
    fund: StartingFund = StartingFund()
    policy: dict[str, Any] = {}
    source: str = ""


class Difference(msgspec.Struct, frozen=True):
    """A difference between expected and actual outcome; None is an absent value."""

    path: str
    expected: Any
    got: Any


class Outcome(msgspec.Struct, frozen=True):
    """The result of a vector; `rejected` lists rejected events as "events[0]: reason: detail"."""

    verdict: Literal["passed", "failed"]
    differences: tuple[Difference, ...] = ()
    rejected: tuple[str, ...] = ()


class FundWithReserve(Fund):
    """A fund with a fixed reserve line, which only vectors have; `reserve_line` is in atoms."""

    __slots__ = ("_fixed_line",)

    def __init__(self, contract: Contract, state: FundState, policy: Policy, reserve_line: int) -> None:
        super().__init__(contract, state, policy)
        self._fixed_line = reserve_line

    @property
    def configured_line(self) -> int:
        """The fixed line."""
        return self._fixed_line


class Refused(msgspec.Struct, frozen=True):
    """A rejected event: its index in the vector."""

    event: int
    rejection: Rejection

    def __str__(self) -> str:
        return f"events[{self.event}]: {self.rejection.reason}: {self.rejection.detail}"


def read_vector(path: Path) -> dict[str, Any]:
    """The vector in a file; raises VectorError when it cannot be read or is not an object in JSON."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise VectorError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VectorError(f"{path} is not a vector: {error}") from None


def run_vector(vector: dict[str, Any]) -> Outcome:
    """Runs a vector and compares its complete outcome; raises VectorError if it is not a vector."""
    read = _read(vector)
    contract = _contract(read)
    fund = _starting_fund(read, contract)
    expected = _canonical("expect", msgspec.to_builtins(read.expect), contract)
    partition = Partition(0, 1, [fund], *_currencies())
    run = _Run(partition, contract.symbol)
    for index, event in enumerate(read.events):
        run.apply(index, event)
    got = _canonical("got", _result(partition.take(), fund, run), contract)
    differences = tuple(differences_of("expect", expected, got))
    return Outcome("failed" if differences else "passed", differences, rejected=tuple(map(str, run.rejected)))


def _read(vector: dict[str, Any]) -> Vector:
    try:
        return msgspec.convert(vector, Vector)
    except msgspec.ValidationError as error:
        raise VectorError(f"not a vector: {error}") from None


def _contract(vector: Vector) -> Contract:
    try:
        return contract_of(vector.contract, *_currencies())
    except Rejection as rejection:
        raise VectorError(f"not a vector: contract: {rejection.detail}") from None


def _currencies() -> tuple[dict[str, int], int]:
    currency = CurrencyConfig()
    return currency.decimals, currency.decimals_default


def _starting_fund(vector: Vector, contract: Contract) -> Fund:
    def atoms(path: str, text: str) -> int:
        units = _units(path, text, contract.settle_decimals)
        if not 0 <= units <= INT64_MAX:
            raise VectorError(f"not a vector: {path}: a fund cannot hold {text}")
        return units

    state = FundState(
        contract.symbol,
        balance=atoms("fund.balance", vector.fund.balance),
        outstanding=atoms("fund.outstanding", vector.fund.outstanding),
    )
    return FundWithReserve(
        contract, state, _policy(vector.policy), atoms("policy.reserveLine", vector.policy.get("reserveLine", "0"))
    )


def _policy(keys: dict[str, Any]) -> Policy:
    """The policy of a vector; numbers may be strings, and a guard or a limit may be "off"."""
    given = {"escalate_min": 0} | {snake_case(key): value for key, value in keys.items() if key != "reserveLine"}
    for name, off in (("drawdown_guard", None), ("takeover", {})):
        part = given.get(name)
        if isinstance(part, dict):
            given[name] = {snake_case(key): None if value == "off" else value for key, value in part.items()}
        elif not part or part == "off":
            given[name] = off
    try:
        return msgspec.convert(given, Policy, strict=False)
    except msgspec.ValidationError as error:
        raise VectorError(f"not a vector: policy: {error}") from None


def snake_case(name: str) -> str:
    """Returns a camelCase name in snake_case."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _units(path: str, text: Any, decimals: int) -> int:
    try:
        return to_units(Decimal(text if isinstance(text, str) else "not a string"), decimals)
    except (ValueError, ArithmeticError):
        raise VectorError(f"not a vector: {path}: {text!r} is not a decimal string of at most {decimals} decimals") from None


class _Run:
    """Applies the events of a vector; collects the rejected ones, and the time of the last applied one."""

    def __init__(self, partition: Partition, symbol: str) -> None:
        self.rejected: list[Refused] = []
        self.last_ts = 0
        self._partition = partition
        self._symbol = symbol

    @property
    def has_mark(self) -> bool:
        """Whether the contract has a mark."""
        book = self._partition.book(self._symbol)
        return book is not None and book.mark is not None

    def apply(self, index: int, event: dict[str, Any]) -> None:
        """Applies the event at an index."""
        defaults = {"symbol": self._symbol, "ts": 0} if event.get("type") in _OF_A_CONTRACT else {}
        message = Message("0-1", "json", msgspec.json.encode(defaults | event))
        try:
            for decoded in decode(message):
                duplicates = self._partition.batch.duplicates.total()
                self._partition.apply(decoded)
                if duplicates == self._partition.batch.duplicates.total():
                    self.last_ts = getattr(decoded, "ts", self.last_ts)
        except Rejection as rejection:
            if rejection.reason in (Reason.CONFLICT, Reason.LATE):
                self._partition.batch.duplicates[self._symbol] += 1
            else:
                self.rejected.append(Refused(index, rejection))


def _result(batch: Batch, fund: Fund, run: _Run) -> dict[str, Any]:
    """The actual outcome in the shape of an `Expectation`, with integer amounts and prices."""
    return {
        "entries": [_pick(entry, ExpectedEntry) for entry in batch.entries],
        "fund": _fund(fund, run),
        "inventory": _inventory(fund),
        "adl": [_pick(order, ExpectedOrder, rounds=_rounds(batch, order)) for order in batch.orders.values()],
        "duplicates": batch.duplicates.total(),
        "rejected": [{"event": one.event, "reason": one.rejection.reason.value} for one in run.rejected],
    }


def _fund(fund: Fund, run: _Run) -> dict[str, Any]:
    inventory, valued = fund.inventory, dict.fromkeys(("unrealised_long", "unrealised_short", "equity"))
    if run.has_mark:
        unrealised = [side.unrealised for side in inventory.sides()] if inventory else [0, 0]
        valued = dict(zip(valued, (*unrealised, fund.equity), strict=True))
    return _pick(fund, ExpectedFund, **valued, capacity=fund.capacity(run.last_ts), head=fund.head.hex())


def _inventory(fund: Fund) -> dict[str, Any]:
    def tranches(holding: Holding) -> list[dict[str, Any]]:
        return [_pick(tranche, ExpectedTranche) for tranche in holding.tranches.values()]

    inventory = fund.inventory
    return {holding.name: tranches(holding) for holding in inventory.sides()} if inventory else {"long": [], "short": []}


def _rounds(batch: Batch, order: OrderState) -> list[list[dict[str, Any]]]:
    """The allocations of each round of an order, in the order of ranks."""
    rounds: list[list[dict[str, Any]]] = [[] for _ in range(order.round)]
    for record in (sealed.record for sealed in batch.records):
        if record.adl == order.adl and record.kind in ("order", "round", "part"):
            terms = terms_of(record.kind, record.body)
            allocated = zip(terms.accounts, terms.requested, strict=True)
            rounds[record.round - 1] += [{"account": account, "lots": lots} for account, lots in allocated]
    return rounds


def _pick(source: object, shape: type[_Part], **given: Any) -> dict[str, Any]:
    """The fields of a shape, under their names in a vector, from a source or as given."""
    fields = zip(shape.__struct_fields__, shape.__struct_encode_fields__, strict=True)
    return {shown: given[name] if name in given else getattr(source, name) for name, shown in fields}


def _canonical(path: str, value: Any, contract: Contract) -> Any:
    """The same with every amount and price as the shortest decimal string, from text or from units."""
    if isinstance(value, list | tuple):
        return [_canonical(f"{path}[{index}]", element, contract) for index, element in enumerate(value)]
    if not isinstance(value, dict):
        return value
    decimals = dict.fromkeys(_MONEY, contract.settle_decimals) | dict.fromkeys(_PRICES, contract.price_decimals)
    return {
        key: _shortest(f"{path}.{key}", inner, decimals[key])
        if key in decimals and inner is not None
        else _canonical(f"{path}.{key}", inner, contract)
        for key, inner in value.items()
    }


def _shortest(path: str, amount: str | int, decimals: int) -> str:
    return format_units(amount if isinstance(amount, int) else _units(path, amount, decimals), decimals)


def differences_of(path: str, expected: Any, got: Any) -> Iterator[Difference]:
    """The differences between two values of the same shape, including elements that only one list has."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            yield from differences_of(f"{path}.{key}", value, got[key])
    elif isinstance(expected, list) and isinstance(got, list):
        for index, (one, other) in enumerate(zip_longest(expected, got)):
            yield from differences_of(f"{path}[{index}]", one, other)
    elif expected != got:
        yield Difference(path, expected, got)
