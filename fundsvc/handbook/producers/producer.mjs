// Connects a matching engine to fundsvc: passes its events on, and passes ADL rounds to it.
//
// Reads events from standard input, one JSON object per line, without `seq` and `prevSeq`. Numbers each event, writes it to the
// journal, then sends it. After a restart or a lost connection it resends what the service has not settled. Prints each ADL
// round once; the engine answers it with adlFill, position and adlEnd.
//
//     npm install ioredis
//     FUNDSVC_STREAM=redis://localhost:6379 FUNDSVC_API=http://localhost:8080 FUNDSVC_TOKEN=... node producer.mjs journal.ndjson
//
// JavaScript's numbers are exact up to 2^53, and so are the sequences and lots here.

import { existsSync, fsyncSync, openSync, readFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { Redis } from "ioredis";

const NUMBERED = new Set(["fill", "takeover", "unwind", "settle", "adlFill", "adlEnd"]);
const STATES = new Set(["mark", "position"]);
const EVENTS_PER_MESSAGE = 100;
const RETRY_MS = 1000;

/** Connects to a URL such as redis://:password@host:6379 or unix://:password@/path; each call fails at once without a server. */
function connect(url) {
  const socket = /^unix:\/\/(?::(.*)@)?(\/.*)$/.exec(url);
  const options = { maxRetriesPerRequest: 0, retryStrategy: () => RETRY_MS };
  const stream = socket ? new Redis({ path: socket[2], password: socket[1], ...options }) : new Redis(url, options);
  return stream.on("error", () => {}); // the failing call reports it
}

/** Numbers, journals and sends events. `last` is the work in progress: it keeps the order of the journal in the streams. */
class Producer {
  constructor(path) {
    this.stream = connect(process.env.FUNDSVC_STREAM);
    this.reader = connect(process.env.FUNDSVC_STREAM); // a blocking read occupies its connection
    this.last = Promise.resolve();
    this.partitions = 0;
    this.epoch = null; // the stream epoch of the last cursor
    this.sequences = new Map(); // the last one of each contract: of numbered events, and of marks and positions
    this.positions = new Map(); // by symbol, and there by account and side
    this.rounds = new Set(); // a round may be announced again
    const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n").filter(Boolean) : [];
    this.events = lines.map((line) => JSON.parse(line));
    this.events.forEach((event) => this.remember(event));
    this.journal = openSync(path, "a");
  }

  /** Updates the memory with an event of the journal. */
  remember(event) {
    const { type, symbol } = event;
    if ("seq" in event) this.sequences.set(`${symbol} ${STATES.has(type)}`, event.seq);
    if (type === "position") {
      if (!this.positions.has(symbol)) this.positions.set(symbol, new Map());
      this.positions.get(symbol).set(`${event.account} ${event.positionSide ?? "BOTH"}`, event);
    } else if (type === "adlAck") {
      this.rounds.add(`${symbol} ${event.adl} ${event.round}`);
    } else if (type === "settle") { // ends the contract; in its next generation the numbers of orders begin at 1 again
      this.positions.delete(symbol);
      this.rounds = new Set([...this.rounds].filter((round) => !round.startsWith(`${symbol} `)));
    }
  }

  /** Runs a piece of work after the ones before it. */
  inTurn(work) {
    this.last = this.last.then(work);
    return this.last;
  }

  /** Numbers an event, writes it to the journal, and sends it. It is not lost if sending fails. */
  emit(event) {
    return this.inTurn(async () => {
      this.record([event]);
      try {
        await this.send([event]);
      } catch {
        await this.resume();
      }
    });
  }

  /** Numbers events and writes them to the journal. */
  record(events) {
    for (const event of events) {
      const key = `${event.symbol} ${STATES.has(event.type)}`;
      const before = this.sequences.get(key) ?? 0;
      if (NUMBERED.has(event.type)) event.prevSeq = before;
      if (NUMBERED.has(event.type) || STATES.has(event.type)) event.seq = before + 1;
      this.remember(event);
      this.events.push(event);
      writeSync(this.journal, `${JSON.stringify(event)}\n`);
    }
    fsyncSync(this.journal);
  }

  /** Appends events to the streams of their partitions, in order. */
  async send(events) {
    const routed = new Map();
    for (const event of events) {
      for (const partition of this.partitionsOf(event)) {
        if (!routed.has(partition)) routed.set(partition, []);
        routed.get(partition).push(event);
      }
    }
    for (const [partition, run] of routed) {
      for (let start = 0; start < run.length; start += EVENTS_PER_MESSAGE) {
        const body = JSON.stringify(run.slice(start, start + EVENTS_PER_MESSAGE));
        await this.stream.xadd(`fundsvc:{${partition}}:in`, "*", "json", body);
      }
    }
  }

  /** Returns the partition of an event's contract; a rate belongs to all partitions. */
  partitionsOf({ type, symbol, contract }) {
    if (type === "rate") return [...Array(this.partitions).keys()];
    return [crc32(type === "contract" ? contract.symbol : symbol) % this.partitions];
  }

  /**
   * Sends everything that is not settled again; retries until that succeeds.
   *
   * Marks and positions have sequences of their own, so the service ignores those that it knows. If the stream may have lost
   * events, snapshots make the books complete.
   */
  async resume() {
    for (;;) {
      try {
        const cursor = await readCursor();
        this.partitions = cursor.partitions.length;
        const settled = new Map(cursor.contracts.map(({ symbol, seq }) => [symbol, seq]));
        await this.send(this.events.filter(({ type, symbol, seq }) => !NUMBERED.has(type) || seq > (settled.get(symbol) ?? 0)));
        if (cursor.streamEpoch !== this.epoch) {
          for (const symbol of this.positions.keys()) await this.send(this.snapshot(symbol));
        }
        this.epoch = cursor.streamEpoch;
        return;
      } catch (fault) {
        console.error(`${fault}: retries in ${RETRY_MS} ms`);
        await sleep(RETRY_MS);
      }
    }
  }

  /**
   * Returns a snapshot of a contract's positions. The journal contains only the positions: an old snapshot that is sent again
   * would close later positions.
   */
  snapshot(symbol) {
    const frame = { type: "snapshot", symbol, ts: Date.now() };
    const open = [...this.positions.get(symbol).values()].filter(({ lots }) => lots !== 0);
    const positions = open.map((position) => ({ ...position, ts: frame.ts }));
    this.record(positions);
    return [{ ...frame, phase: "begin" }, ...positions, { ...frame, phase: "end" }];
  }

  /** Acknowledges and prints each ADL round once. */
  async passRounds() {
    const keys = [...Array(this.partitions).keys()].map((partition) => `fundsvc:{${partition}}:adl`);
    const after = new Map(keys.map((key) => [key, "0-0"]));
    for (;;) {
      let found;
      try {
        found = await this.reader.xread("BLOCK", 1000, "STREAMS", ...keys, ...keys.map((key) => after.get(key)));
      } catch {
        await this.inTurn(() => this.resume());
        continue;
      }
      for (const [key, messages] of found ?? []) {
        for (const [id, [, body]] of messages) {
          after.set(key, id);
          await this.passRound(JSON.parse(body));
        }
      }
    }
  }

  /** Acknowledges and prints a round, unless it is known. The journal remembers it by its acknowledgement. */
  async passRound(announced) {
    const { symbol, adl, round } = announced;
    if (this.rounds.has(`${symbol} ${adl} ${round}`)) return;
    await this.emit({ type: "adlAck", symbol, adl, round, ts: Date.now() });
    console.log(JSON.stringify(announced));
  }
}

/** Returns what the service has settled. */
async function readCursor() {
  const headers = { Authorization: `Bearer ${process.env.FUNDSVC_TOKEN}` };
  const answer = await fetch(`${process.env.FUNDSVC_API}/api/v1/ingest/cursor`, { headers, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`the cursor is answered with ${answer.status}`);
  return (await answer.json()).data;
}

const producer = new Producer(process.argv[2]);
await producer.inTurn(() => producer.resume());
producer.passRounds();
for await (const line of createInterface({ input: process.stdin })) await producer.emit(JSON.parse(line));
process.exit();
