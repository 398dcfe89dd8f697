"""Takeovers and unwinds with a sequence that the contract has passed, in a whole service: the ledger has their contents."""

import pytest
from served import contract, fill, now_ms, restarted, served

SYMBOL = "HELDUSDTM"
TS = now_ms() - 60_000

OTHERS = {"side": "buy", "lots": 999, "ts": TS + 1, "tradeId": "t9", "orderId": "o9"}


def mark(price):
    return {"type": "mark", "symbol": SYMBOL, "price": price, "ts": TS}


def position(account, lots, entry_price="60"):
    terms = {"lots": lots, "entryPrice": entry_price, "margin": "500", "ts": TS}
    return {"type": "position", "symbol": SYMBOL, "account": account} | terms


def takeover(seq, lots, **fields):
    given = {"side": "sell", "bankruptcyPrice": "50", "ts": TS, "tradeId": f"t{seq}", "orderId": "o", "account": "long"}
    return {"type": "takeover", "symbol": SYMBOL, "seq": seq, "lots": lots} | given | fields


def unwind(seq, lots, **fields):
    given = {"side": "sell", "price": "48", "ts": TS, "tradeId": f"t{seq}", "orderId": "o"}
    return {"type": "unwind", "symbol": SYMBOL, "seq": seq, "lots": lots} | given | fields


def f(seq, **fields):
    return fill(SYMBOL, seq, **({"ts": TS, "price": "101", "bankruptcyPrice": "100", "lots": 100} | fields))


@pytest.fixture
async def service(config):
    """A fund of 100 at a mark at which a lot taken over at 50 loses 5."""
    async with served(config) as service:
        await service.send(contract(SYMBOL, multiplier=1), mark("45"), f(1))
        yield service


EVENTS = [
    takeover(3, 4),
    takeover(5, 3, bankruptcyPrice="51"),
    takeover(7, 30),
    unwind(9, 6),
    takeover(11, 2, side="buy", bankruptcyPrice="46"),
    unwind(13, 1, side="buy"),
]
"""The fund accepts a part of the third takeover, and the rest is forced. The unwinds close lots of two tranches, and of one."""


async def state(service):
    rows = await service.pool.fetch("SELECT symbol, entry, encode(hash, 'hex') FROM entries ORDER BY 1, 2")
    tables = [await service.pool.fetch(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("tranches", "holdings")]
    return [[tuple(row) for row in found] for found in (rows, *tables)]


async def test_resent_takeovers_and_unwinds_are_duplicates_after_a_restart(service, config):
    await service.append(*EVENTS)
    before = await state(service)
    assert before[0][-1][1] > len(EVENTS), "some events have several entries"
    await service.append(*EVENTS)
    async with restarted(service, config) as again:
        await again.append(*EVENTS)
        answer = await again.send(*EVENTS)
        assert answer["rejected"] == []
        assert await again.reasons() == []
        assert await state(again) == before
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 2 * len(EVENTS)


@pytest.mark.parametrize("field", [*OTHERS, "price"])
async def test_takeover_or_unwind_with_other_content_is_a_conflict_after_a_restart(service, config, field):
    await service.append(*EVENTS)
    before = await state(service)
    others = [event | ({field: OTHERS[field]} if field in OTHERS else {price_of(event): "52"}) for event in EVENTS]
    others = [other for other, event in zip(others, EVENTS, strict=True) if other != event]
    async with restarted(service, config) as again:
        await again.append(*others)
        assert await again.reasons() == ["conflict"] * len(others)
        assert await state(again) == before


def price_of(event):
    return "price" if event["type"] == "unwind" else "bankruptcyPrice"


async def test_other_type_of_event_under_a_sequence_is_a_conflict(service, config):
    await service.append(*EVENTS)
    async with restarted(service, config) as again:
        await again.append(unwind(3, 4), takeover(9, 6), f(9, lots=6), f(3))
        assert await again.reasons() == ["conflict"] * 4


async def test_takeovers_and_unwinds_that_were_never_applied_are_late(service, config):
    await service.append(*EVENTS)
    async with restarted(service, config) as again:
        await again.append(takeover(4, 1), unwind(8, 1), takeover(14, 1))
        assert await again.reasons() == ["late", "late"]


async def test_takeover_of_which_the_fund_accepts_nothing_is_known_without_its_ids(service, config):
    """Its order is open, or ends at once; the ledger contains neither its trade nor its order."""
    nothing = takeover(20, 5, bankruptcyPrice="5000")
    await service.append(position("anna", -3, "6000"), nothing, takeover(21, 7, bankruptcyPrice="9000", side="sell"))
    orders = await service.pool.fetch("SELECT cause, origin, lots, state FROM adl_orders ORDER BY adl")
    assert [tuple(row)[:2] for row in orders] == [(0, "takeover")] * 2
    conflicts = [nothing | {"lots": 4}, nothing | {"bankruptcyPrice": "5001"}, nothing | {"account": "else"}]
    async with restarted(service, config) as again:
        await again.append(nothing, nothing | {"tradeId": "other"}, *conflicts)
        assert await again.reasons() == ["conflict"] * 3
        assert again.count("fundsvc_duplicates_total", symbol=SYMBOL) == 2


async def test_unwind_of_more_tranches_than_a_page_is_a_duplicate(service, config, monkeypatch):
    monkeypatch.setattr("fundsvc.store.sequences.PAGE_ENTRIES", 3)
    many = [takeover(seq, 1, bankruptcyPrice="45") for seq in range(2, 12)]
    closing = [unwind(20, 8), unwind(21, 1)]
    await service.append(*many, *closing)
    async with restarted(service, config) as again:
        await again.append(*closing, *many, unwind(20, 8))
        assert await again.reasons() == []
        await again.append(unwind(20, 9))
        assert await again.reasons() == ["conflict"]


async def test_rejected_takeovers_and_unwinds_settle_once_when_replayed(service, config):
    short, early = unwind(15, 6), takeover(3, 40)
    await service.append(takeover(4, 2), takeover(6, 9), takeover(7, 2), early, short, unwind(16, 1), f(30))
    rows = await service.pool.fetch("SELECT stream_id, position, reason, event_seq FROM rejected ORDER BY event_seq")
    assert [(row["event_seq"], row["reason"]) for row in rows] == [(3, "late")]
    late = takeover(2, 1), unwind(14, 5)
    await service.append(*late)
    rows = await service.pool.fetch("SELECT stream_id, position, event_seq FROM rejected ORDER BY event_seq")
    events = {event["seq"]: event for event in (early, *late)}
    for row in [*rows, *rows]:
        await service.append(events[row["event_seq"]], replay_of=f"{row['stream_id']}/{row['position']}")
    before = await state(service)
    assert await service.reasons() == []
    async with restarted(service, config) as again:
        await again.append(*events.values(), takeover(4, 2), short, f(30))
        assert await again.reasons() == []
        assert await state(again) == before
        await again.append(*(event | {"lots": event["lots"] + 1} for event in events.values()))
        assert await again.reasons() == ["conflict"] * 3
