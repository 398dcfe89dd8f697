"""Answers for the queue of a contract."""

import msgspec

from fundsvc.api.adl_answers.inputs import price_text
from fundsvc.api.answers import Answer
from fundsvc.api.visibility import Visibility, rough, rough_or_none, rough_total
from fundsvc.core.adl.queue import Section, joined_sections, merge_small_groups
from fundsvc.core.contracts import Contract
from fundsvc.core.generations import public_symbol
from fundsvc.core.numbers import format_units
from fundsvc.readmodel.adl_books import BookView, Queue


class SectionAnswer(Answer, frozen=True):
    """The positions with `lights` down to `toLights`: number, lots, highest and lowest score, and unrealised PnL."""

    lights: int
    to_lights: int
    positions: int
    lots: int
    highest_score: float | None
    lowest_score: float | None
    unrealised_pnl: str


class QueueAnswer(Answer, frozen=True):
    """The queue of a contract by side, five lights first, after message `lastId`, the last settled message at `ts`.

    Each section has at least `queue.k_min` positions. Smaller sections are joined with the next. A side with fewer positions
    has no section. Lots are rounded up to tens and to two significant digits, scores and PnL to two significant digits. The
    difference of two sections or two answers therefore does not reveal one position. Risk receives each of the five lights
    exactly.

    `markTs` is the engine's time of the mark; `isMarkStale` is true if it is too old. `isStale` is true if the book is stale.
    """

    symbol: str
    mark_price: str | None
    mark_ts: int | None
    is_mark_stale: bool
    is_stale: bool
    long: list[SectionAnswer]
    short: list[SectionAnswer]
    last_id: str
    ts: int


def queue_answer(view: BookView, queue: Queue, visibility: Visibility, k_min: int, *, is_mark_stale: bool) -> QueueAnswer:
    """Returns a contract's queue: exact with visibility of all accounts, else in sections of at least `k_min` positions."""
    contract = view.contract
    long, short = (_sections(queue.get(name, []), contract, visibility, k_min) for name in ("long", "short"))
    return QueueAnswer(
        symbol=public_symbol(contract.symbol),
        mark_price=price_text(view.book.mark, contract),
        mark_ts=None if view.book.mark is None else view.book.mark_ts,
        is_mark_stale=is_mark_stale,
        is_stale=view.book.stale,
        long=long,
        short=short,
        last_id=view.last_id,
        ts=view.ts,
    )


def _sections(found: list[Section], contract: Contract, visibility: Visibility, k_min: int) -> list[SectionAnswer]:
    if visibility.all_accounts:
        return [_section_answer(section, contract) for section in found]
    return [_rough_section(_section_answer(section, contract)) for section in merge_small_groups(found, k_min, joined_sections)]


def _rough_section(section: SectionAnswer) -> SectionAnswer:
    return msgspec.structs.replace(
        section,
        lots=rough_total(section.lots),
        highest_score=rough_or_none(section.highest_score),
        lowest_score=rough_or_none(section.lowest_score),
        unrealised_pnl=rough(section.unrealised_pnl),
    )


def _section_answer(section: Section, contract: Contract) -> SectionAnswer:
    return SectionAnswer(
        lights=section.lights,
        to_lights=section.to_lights,
        positions=section.positions,
        lots=section.lots,
        highest_score=section.highest,
        lowest_score=section.lowest,
        unrealised_pnl=format_units(section.unrealised_pnl, contract.settle_decimals),
    )
