"""Routes each statement to the cells that it concerns, and merges their rows.

A statement about a contract or a partition goes to the cell that holds it. A statement about several contracts is divided. A
list goes to all cells; rows of contracts and partitions that a cell does not hold, such as those of an unfinished move, are
left out. This table and `Cells` are the only places that know of several databases when rows are read.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple

from fundsvc.config.cells import MAIN
from fundsvc.store.cells import CellMap, Cells
from fundsvc.store.database import CellAway, StoreFault

Row = Any
"""A row of a statement: a record of the driver, or a dict."""

Parameters = Sequence[Any]
PerCell = Mapping[str, Parameters]
"""The parameters of a statement for each cell that it concerns."""


class Route(NamedTuple):
    """How a statement is divided among cells, and how their rows are merged.

    `split` returns the parameters for each cell, None for a list of all cells. `merge` receives the rows of each cell. Without
    `whole`, a list may lack the rows of cells that are away, if its reader accepts that. A list that `locates` has the
    generations of partitions.
    """

    split: Callable[[CellMap, Parameters], PerCell | None]
    merge: Callable[[Sequence[list[Row]], Parameters], list[Row]]
    whole: bool = False
    locates: bool = False


def _one_symbol(place: int) -> Callable[[CellMap, Parameters], PerCell]:
    return lambda known, parameters: {known.cell_of_symbol(parameters[place]): parameters}


def _one_partition(place: int) -> Callable[[CellMap, Parameters], PerCell | None]:
    def split(known: CellMap, parameters: Parameters) -> PerCell | None:
        partition = parameters[place]
        return None if partition is None else {known.cell_of(partition): parameters}

    return split


def _symbols(place: int, *parallel: int) -> Callable[[CellMap, Parameters], PerCell | None]:
    """Divides a list of symbols, and the lists parallel to it; no list means all contracts."""

    def split(known: CellMap, parameters: Parameters) -> PerCell | None:
        if parameters[place] is None:
            return None
        places: dict[str, list[int]] = {}
        for index, symbol in enumerate(parameters[place]):
            places.setdefault(known.cell_of_symbol(symbol), []).append(index)
        return {cell: _selected(parameters, (place, *parallel), chosen) for cell, chosen in places.items()}

    return split


def _selected(parameters: Parameters, columns: Iterable[int], chosen: Sequence[int]) -> Parameters:
    """Returns parameters with only the chosen elements of some lists."""
    selected = list(parameters)
    for column in columns:
        values = list(parameters[column])
        selected[column] = [values[index] for index in chosen]
    return selected


def _everywhere(_known: CellMap, _parameters: Parameters) -> None:
    return None


def _at_main(_known: CellMap, parameters: Parameters) -> PerCell:
    return {MAIN: parameters}


def _all(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
    return list(chain.from_iterable(rows))


def _ordered(
    key: Callable[[Row], Any], limit: int | None = None, *, descending: bool = False
) -> Callable[[Sequence[list[Row]], Parameters], list[Row]]:
    """Merges rows in an order, up to the number in the parameter `limit`."""

    def merge(rows: Sequence[list[Row]], parameters: Parameters) -> list[Row]:
        ordered = sorted(chain.from_iterable(rows), key=key, reverse=descending)
        return ordered[: None if limit is None else parameters[limit]]

    return merge


def _aligned(symbols: int) -> Callable[[Sequence[list[Row]], Parameters], list[Row]]:
    """Puts rows, one for each symbol, in the order of the symbols."""

    def merge(rows: Sequence[list[Row]], parameters: Parameters) -> list[Row]:
        found: dict[str, list[Row]] = {}
        for row in chain.from_iterable(rows):
            found.setdefault(row["symbol"], []).append(row)
        rest = {symbol: iter(those) for symbol, those in found.items()}
        return [next(rest[symbol]) for symbol in parameters[symbols]]

    return merge


def _summed(*keys: str, amounts: Sequence[str]) -> Callable[[Sequence[list[Row]], Parameters], list[Row]]:
    """Adds up rows with the same keys. Amounts of several cells may count different units of 10**-decimals."""

    def merge(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
        of_key = itemgetter(*keys) if keys else lambda _: ()
        scaled = sorted(_scaled(list(chain.from_iterable(rows)), amounts), key=of_key)
        return [_sum(list(group)) for _, group in groupby(scaled, of_key)]

    def _sum(group: list[dict[str, Any]]) -> dict[str, Any]:
        added = {name for name, value in group[0].items() if name not in keys and name != "decimals"}
        return group[0] | {name: sum(row[name] for row in group) for name in added}

    return merge


def _scaled(rows: Sequence[Row], amounts: Iterable[str]) -> list[dict[str, Any]]:
    """Returns rows whose amounts count the finest unit of their currency."""
    found = [dict(row) for row in rows]
    finest: dict[str, int] = {}
    for row in found:
        if row.get("decimals") is not None:
            finest[row.get("currency", "")] = max(finest.get(row.get("currency", ""), 0), row["decimals"])
    for row in found:
        decimals = finest.get(row.get("currency", ""))
        if decimals is not None:
            unit = 10 ** (decimals - (row["decimals"] or 0))
            row.update({name: row[name] * unit for name in amounts if row[name] is not None}, decimals=decimals)
    return found


def _histories(*keys: str) -> Callable[[Sequence[list[Row]], Parameters], list[Row]]:
    """Merges changes of currencies over time: each row has the total that all cells hold."""
    amounts = ("change",) if not keys else ("credited", "paid", "uncovered")

    def merge(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
        held: dict[str, Any] = {}
        merged = []
        for of_cell in _by_cell(rows, ("held", *amounts)):
            totals = {row.get("currency", ""): row["held"] for row in of_cell}
            held = {currency: held.get(currency, 0) + totals.get(currency, 0) for currency in held | totals}
            merged += of_cell
        found = [row | {"held": held[row.get("currency", "")]} for row in merged]
        return sorted(found, key=lambda row: row.get("currency", ""))

    return merge


def _by_cell(rows: Sequence[list[Row]], amounts: Sequence[str]) -> Iterable[list[dict[str, Any]]]:
    """Yields the scaled rows of each cell."""
    scaled = iter(_scaled(list(chain.from_iterable(rows)), amounts))
    for of_cell in rows:
        yield [next(scaled) for _ in of_cell]


def _newest_rates(rows: Sequence[list[Row]], parameters: Parameters) -> list[Row]:
    """Returns the newest rate of each currency; one from the future only if there is no other."""
    latest_ms = time.time_ns() // 1_000_000 + parameters[0]
    ascending = sorted(chain.from_iterable(rows), key=lambda row: (row["ts"] <= latest_ms, row["ts"]))
    return list({row["currency"]: row for row in ascending}.values())


def _largest_shortfalls(rows: Sequence[list[Row]], parameters: Parameters) -> list[Row]:
    def place(row: Row) -> Any:
        deficit = (row["paid"] + row["uncovered"]) / 10 ** row["settle_decimals"]
        return row["settle_currency"], -deficit, row["symbol"], row["entry"]

    ranked = groupby(sorted(chain.from_iterable(rows), key=place), itemgetter("settle_currency"))
    return [row for _, group in ranked for row in list(group)[: parameters[2]]]


def _waiting(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
    found = list(chain.from_iterable(rows))
    suspended = sorted(chain.from_iterable(row["suspended"] for row in found))
    return [{"gaps": sum(row["gaps"] for row in found), "orders": sum(row["orders"] for row in found), "suspended": suspended}]


def _archiving(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
    found = list(chain.from_iterable(rows))
    return [{"failing": any(row["failing"] for row in found), "archived": min(row["archived"] for row in found)}]


def _oldest_schema(rows: Sequence[list[Row]], _parameters: Parameters) -> list[Row]:
    return [min(chain.from_iterable(rows), key=itemgetter("version_num"))]


def _in_stream_order(row: Row) -> Any:
    milliseconds, _, number = row["stream_id"].partition("-")
    return row["partition"], int(milliseconds), int(number), row["position"]


def _latest(row: Row) -> Any:
    return -row["updated_at"].timestamp(), row["symbol"], -row["adl"]


_OF_SYMBOL = Route(_one_symbol(0), _all)
_OF_PARTITION = Route(_one_partition(0), _all)
_OF_SYMBOLS = Route(_symbols(0), _all)
_OF_PAIRS = Route(_symbols(0, 1), _all)
_OF_TRIPLES = Route(_symbols(0, 1, 2), _all)
_BY_SYMBOL = _ordered(itemgetter("symbol"))
_BY_EXECUTION = itemgetter("recorded_at", "symbol", "record")
_MAIN = Route(_at_main, _all)
_TOTALS = _summed("currency", "kind", amounts=("credited", "paid", "uncovered", "repaid"))

ROUTES: Mapping[str, Route] = {
    **dict.fromkeys(("entries_ascending", "entries_descending", "entry_account", "entry_spans", "entries_after"), _OF_SYMBOL),
    **dict.fromkeys(("records_after", "audit_of", "ledger_key", "outstanding_at", "target", "adl_turns"), _OF_SYMBOL),
    **dict.fromkeys(("candles", "chart_ends", "chart_hour_from", "chart_clock_before", "chart_buckets"), _OF_SYMBOL),
    **dict.fromkeys(("orders_ascending", "orders_descending", "orders_caused", "rounds", "rounds_promised"), _OF_SYMBOL),
    **dict.fromkeys(("executed_rounds", "executed_accounts", "round_parts"), _OF_SYMBOL),
    **dict.fromkeys(("tranches_ascending", "tranches_descending", "rollup_outstanding"), _OF_SYMBOL),
    **dict.fromkeys(("books_with_positions", "rejected_places", "load_funds", "load_orders", "load_records"), _OF_PARTITION),
    **dict.fromkeys(
        ("rejected_among", "rejected_sent", "gaps", "gap_found", "gap_acknowledge", "gaps_acknowledge"), _OF_PARTITION
    ),
    **dict.fromkeys(("contract_states", "policies_of", "sequences_late", "sequences_refused", "leverages"), _OF_SYMBOLS),
    **dict.fromkeys(("sequences_settled", "sequences_archived"), _OF_SYMBOLS),
    **dict.fromkeys(("sequences_from", "sequences_takeovers", "sequences_adl", "reduced_sides", "reductions"), _OF_PAIRS),
    **dict.fromkeys(("order_steps",), _OF_PAIRS),
    **dict.fromkeys(("sequences_rest", "rejected_kept"), _OF_TRIPLES),
    "chain_links": Route(_symbols(0, 1, 2), _aligned(0)),
    "deficits": Route(_symbols(0, 1, 2, 3), _all),
    "rollup_hours": Route(_symbols(0, 1, 2, 3), _all),
    "contracts": Route(_symbols(0), _BY_SYMBOL),
    "funds": Route(_symbols(0), _BY_SYMBOL),
    "balances_at": Route(_symbols(0), _all),
    **dict.fromkeys(("highest_since", "marks", "targets", "present_policies", "contract_counts"), Route(_everywhere, _all)),
    **dict.fromkeys(("heads", "chain_heads", "audited", "audit_states"), Route(_everywhere, _BY_SYMBOL)),
    **dict.fromkeys(("executed_since", "carried_lots"), Route(_everywhere, _all)),
    "latest_orders": Route(_everywhere, _ordered(itemgetter("symbol", "adl"))),
    "all_tranches": Route(_everywhere, _ordered(itemgetter("symbol", "entry"))),
    "newest_fills": Route(_everywhere, _BY_SYMBOL),
    "fund_hours": Route(_everywhere, _ordered(itemgetter("symbol", "hour"))),
    "partitions": Route(_everywhere, _ordered(itemgetter("partition")), locates=True),
    "engines": Route(_everywhere, _ordered(itemgetter("since"))),
    "rates": Route(_everywhere, _newest_rates),
    "orders_latest": Route(_everywhere, _ordered(_latest, 0)),
    "orders_of_span": Route(_everywhere, _ordered(itemgetter("ts", "symbol", "adl"))),
    "largest_shortfalls": Route(_everywhere, _largest_shortfalls),
    "currency_buckets": Route(_everywhere, _histories("currency")),
    "currency_days": Route(_everywhere, _histories()),
    "totals_since": Route(_everywhere, _TOTALS),
    "rejected_waiting": Route(_everywhere, _summed("reason", amounts=())),
    "waiting": Route(_everywhere, _waiting),
    "rejected_list": Route(_one_partition(2), _ordered(_in_stream_order, 5)),
    "schema_version": Route(_everywhere, _oldest_schema),
    "ping": Route(_everywhere, _all),
    "reductions_after": Route(_everywhere, _ordered(_BY_EXECUTION, 4), whole=True),
    "reductions_before": Route(_everywhere, _ordered(_BY_EXECUTION, 4, descending=True), whole=True),
    "reductions_since": Route(_everywhere, _ordered(itemgetter("updated_at", "symbol", "adl", "round")), whole=True),
    "reduction_places": Route(_everywhere, _ordered(itemgetter("at", "symbol", "record")), whole=True),
    "reductions_at": _OF_PAIRS,
    **dict.fromkeys(("stream_servers", "stream_server_first", "stream_server_changed"), _MAIN),
    **dict.fromkeys(("producer_epoch", "producer_confirms"), _MAIN),
    "weak_settings": Route(_everywhere, _all),
    "archiving": Route(_everywhere, _archiving),
    # The statements of fundsvc.store.archive:
    **dict.fromkeys(("bound", "files", "hours", "hour_of", "hour_before"), _OF_SYMBOL),
    **dict.fromkeys(("outstanding", "late_entries", "sequence_from"), _OF_SYMBOL),
    "stubs": Route(_symbols(0), _ordered(itemgetter("symbol", "last_entry"))),
    "archived_spans": Route(_everywhere, _BY_SYMBOL),
}


Read = Callable[..., Awaitable[list[Row]]]
"""Runs a statement through the pool of a cell: pool, name, parameters; raises StoreFault."""


async def routed(cells: Cells, block: str, parameters: Parameters, read: Read) -> list[Row]:
    """Returns the merged rows of a statement from all cells that it concerns.

    Raises CellAway for a cell that does not answer, unless the list may lack its rows.
    """
    route, known = ROUTES[block], cells.known
    divided = route.split(known, parameters)
    wanted = dict.fromkeys(cells.pools, parameters) if divided is None else divided
    one_by_one = (_rows_of(cells, cell, block, given, read, is_list=divided is None) for cell, given in wanted.items())
    answers = await asyncio.gather(*one_by_one)
    if divided is None:
        answers = [_held(cell, answer, known) for cell, answer in zip(wanted, answers, strict=True)]
    faults = [answer for answer in answers if isinstance(answer, CellAway)]
    may_lack = divided is None and cells.skips_away and not route.whole and len(faults) < len(wanted)
    if faults and not may_lack:
        raise faults[0]
    return route.merge([answer for answer in answers if not isinstance(answer, CellAway)], parameters)


async def _rows_of(
    cells: Cells, cell: str, block: str, parameters: Parameters, read: Read, *, is_list: bool
) -> list[Row] | CellAway:
    """Returns the rows of one cell. A list is not read again from a cell that did not answer shortly before."""
    known = cells.known
    if is_list and known.is_away(cell):
        return CellAway(cell, "it did not answer shortly before")
    try:
        rows = await read(cells.pools[cell], block, *parameters)
    except StoreFault as fault:
        known.note_fault(cell)
        return CellAway(cell, str(fault))
    if ROUTES[block].locates:
        known.note(cell, {row["partition"]: row["generation"] for row in rows})
    return rows


def _held(cell: str, answer: list[Row] | CellAway, known: CellMap) -> list[Row] | CellAway:
    """Returns the rows of a list that belong to what a cell holds."""
    return answer if isinstance(answer, CellAway) else [row for row in answer if _is_held(row, cell, known)]


def _is_held(row: Row, cell: str, known: CellMap) -> bool:
    """Whether a cell holds the partition or the contract of a row; True for other rows."""
    if "partition" in row:
        return known.cell_of(row["partition"]) == cell
    return "symbol" not in row or known.cell_of_symbol(row["symbol"]) == cell
