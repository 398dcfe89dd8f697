// Uses the types that are generated from our schemas; the compiler accepts it only if they fit.
import type { AdlFill, Event, Fill } from "./events.js";
import type { Announcement } from "./adlOrder.js";

const fill: Fill = {
  type: "fill", symbol: "XBTUSDTM", seq: 2, prevSeq: 1, side: "sell", lots: 10, price: "39100", bankruptcyPrice: "39000",
  ts: 1765416983918,
};

function answer(round: Announcement, seq: number): Event[] {
  const fills: AdlFill[] = round.allocations.map(({ account, lots }, index) => ({
    type: "adlFill", symbol: round.symbol, seq: seq + index, adl: round.adl, account, lots, ts: round.ts,
  }));
  return [...fills, { type: "adlEnd", symbol: round.symbol, seq: seq + fills.length, adl: round.adl, ts: round.ts }];
}

// @ts-expect-error: a side is "sell" or "buy"
const wrongSide: Fill = { ...fill, side: "long" };
// @ts-expect-error: a price is text
const wrongPrice: Fill = { ...fill, price: 39100 };
// @ts-expect-error: unknown fields are rejected
const unknownField: Event = { type: "adlAck", symbol: "XBTUSDTM", adl: 1, round: 1, ts: 0, lots: 1 };
// @ts-expect-error: seq is required
const noSequence: Event = { type: "settle", symbol: "XBTUSDTM", price: "39000", ts: 0 };

export { answer, fill, noSequence, unknownField, wrongPrice, wrongSide };
