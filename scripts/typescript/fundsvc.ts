/**
 * A client of fundsvc for matching engines in TypeScript, over HTTP and WebSocket alone; it mirrors `fundsvc.client` of Python.
 *
 *     const engine = await Engine.open("http://localhost:8080", () => process.env.FUNDSVC_TOKEN!);
 *     engine.send({ type: "fill", symbol: "XBTUSDTM", seq: 1, ... });
 *     for await (const round of engine.rounds()) engine.send(...execute(round));
 *
 * It needs no package: Node 22, or Node 20 with --experimental-websocket. The types are generated from the schemas of the service:
 * `events.d.ts` from /schemas/events.json, `adlOrder.d.ts` from /schemas/adlOrder.json (json-schema-to-typescript). Numbers are
 * exact up to 2^53, and so are sequences and lots here.
 */
import type { Announcement } from "./adlOrder.js";
import type { Event } from "./events.js";

export interface Rejected { event: Event; reason: string; detail: string }

interface Place { partition: number; id: string }
interface Sent { places: Place[]; events: Event[] }
interface Posted { messages: Place[]; rejected: { index: number; reason: string; detail: string }[]; streamEpoch: number }
interface Cursor {
  streamEpoch: number;
  partitions: { partition: number; lastId: string }[];
  contracts: { symbol: string; seq: number }[];
}
interface Bullet { token: string; instanceServers: { endpoint: string; pingInterval: number }[] }

const NUMBERED = new Set(["fill", "takeover", "unwind", "settle", "adlFill", "adlEnd"]);
const BATCH_EVENTS_MAX = 1000;
const CURSOR_MS = 250;
const RETRY_MS = 500;
const REQUEST_MS_MAX = 20_000;

const sleep = (ms: number) => new Promise<void>((resume) => void setTimeout(resume, ms));

/** An answer with an error that a retry does not change. */
export class ApiError extends Error {
  constructor(readonly status: number, text: string) {
    super(`${status}: ${text}`);
  }
}

/** Sends events in order, keeps them until they are settled, and yields ADL rounds. */
export class Engine {
  /** The fault that ended the sending, if any: an ApiError other than of a lost stream. */
  failure: unknown = null;
  #waiting: Event[] = [];
  #sent: Sent[] = [];
  #known = new Set<string>();

  private constructor(
    private readonly url: string,
    private readonly token: () => string,
    private readonly onRejected: (rejected: Rejected) => void,
    private epoch: number,
  ) {
    this.#run().catch((fault) => (this.failure = fault));
  }

  /** Connects to a service. `token` returns a valid token of role `engine`; `onRejected` gets events that settlement rejects. */
  static async open(url: string, token: () => string, onRejected = (rejected: Rejected) => console.error(rejected)) {
    const { streamEpoch } = await retried(() => request<Cursor>(url, token, "GET", "ingest/cursor"));
    return new Engine(url, token, onRejected, streamEpoch);
  }

  /** The number of events that are not known to be settled. Pause while it grows: the client keeps them in memory. */
  get unsettled(): number {
    return this.#sent.reduce((sum, { events }) => sum + events.length, this.#waiting.length);
  }

  /** Queues events. */
  send(...events: Event[]): void {
    if (this.failure) throw this.failure;
    this.#waiting.push(...events);
  }

  /** Waits until all events are settled. */
  async settled(): Promise<void> {
    while (this.unsettled) {
      if (this.failure) throw this.failure;
      await sleep(CURSOR_MS / 5);
    }
  }

  /** Yields each ADL round once, and acknowledges it when the next one is requested. Recognise those of before a restart. */
  async *rounds(): AsyncGenerator<Announcement> {
    for (;;) {
      try {
        for await (const round of this.#connection()) {
          const key = `${round.symbol} ${round.generation} ${round.adl} ${round.round}`;
          if (this.#known.has(key)) continue;
          this.#known.add(key);
          yield round;
          this.send({ type: "adlAck", symbol: round.symbol, adl: round.adl, round: round.round, ts: Date.now() });
        }
      } catch (fault) {
        if (fault instanceof ApiError) throw fault;
      }
      await sleep(RETRY_MS);
    }
  }

  /** Sends, and follows the cursor. */
  async #run(): Promise<void> {
    for (let read = 0; ; await sleep(this.#waiting.length ? 0 : CURSOR_MS / 10)) {
      if (this.#waiting.length) await retried(() => this.#post());
      if (this.#sent.length && Date.now() > read + CURSOR_MS) {
        await retried(() => this.#resume());
        read = Date.now();
      }
    }
  }

  /** Posts the next events. The service ignores known ones by their sequence, so a repeated post is safe. */
  async #post(): Promise<void> {
    const events = this.#waiting.slice(0, BATCH_EVENTS_MAX);
    const posted = await request<Posted>(this.url, this.token, "POST", `ingest/events?streamEpoch=${this.epoch}`, events);
    if (!posted) return this.#resume();
    this.#waiting.splice(0, events.length);
    this.#sent.push({ places: posted.messages, events });
    for (const { index, reason, detail } of posted.rejected) this.onRejected({ event: events[index]!, reason, detail });
  }

  /** Reads the cursor, forgets what is settled, and sends again what the stream server may have lost. */
  async #resume(): Promise<void> {
    const cursor = (await request<Cursor>(this.url, this.token, "GET", "ingest/cursor"))!;
    if (cursor.streamEpoch === this.epoch) {
      const last = new Map(cursor.partitions.map(({ partition, lastId }) => [partition, lastId]));
      const isSettled = ({ partition, id }: Place) => !isAfter(id, last.get(partition) ?? "0-0");
      while (this.#sent[0]?.places.every(isSettled)) this.#sent.shift();
      return;
    }
    const seqs = new Map(cursor.contracts.map(({ symbol, seq }) => [symbol, seq]));
    const isLost = (event: Event) => !(NUMBERED.has(event.type) && "seq" in event && event.seq! <= (seqs.get(event.symbol) ?? 0));
    this.#waiting = this.#sent.splice(0).flatMap(({ events }) => events.filter(isLost)).concat(this.#waiting);
    this.epoch = cursor.streamEpoch;
  }

  /** Yields the rounds of one connection until it is closed. */
  async *#connection(): AsyncGenerator<Announcement> {
    const bullet = (await request<Bullet>(this.url, this.token, "POST", "bullet-private"))!;
    const { endpoint, pingInterval } = bullet.instanceServers[0]!;
    const socket = new WebSocket(`${endpoint}?token=${encodeURIComponent(bullet.token)}`);
    const received: (Announcement | null)[] = []; // null: the connection is closed
    let wake = () => {};
    const add = (one: Announcement | null) => (received.push(one), wake());
    const tell = (message: object) => socket.send(JSON.stringify(message));
    socket.onopen = () => tell({ id: "rounds", type: "subscribe", topic: "/adl/instruction", response: true });
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "message") add(message.data);
    };
    socket.onclose = socket.onerror = () => add(null);
    const pings = setInterval(() => socket.readyState === socket.OPEN && tell({ id: "ping", type: "ping" }), pingInterval);
    try {
      for (;;) {
        if (!received.length) await new Promise<void>((resume) => (wake = resume));
        const one = received.shift();
        if (one === null) return;
        yield one!;
      }
    } finally {
      clearInterval(pings);
      socket.close();
    }
  }
}

/** Returns the data of an answer, null if the stream server may have lost events; throws ApiError for an error of the request. */
async function request<T>(url: string, token: () => string, method: string, path: string, body?: object): Promise<T | null> {
  const headers = { Authorization: `Bearer ${token()}`, "Content-Type": "application/json" };
  const signal = AbortSignal.timeout(REQUEST_MS_MAX);
  const answer = await fetch(`${url}/api/v1/${path}`, { method, headers, signal, body: body ? JSON.stringify(body) : null });
  if (answer.status === 409) return null;
  if (answer.status >= 500 || answer.status === 429) throw new Error(`the service answers ${answer.status}`);
  if (!answer.ok) throw new ApiError(answer.status, await answer.text());
  return ((await answer.json()) as { data: T }).data;
}

/** Repeats work until no fault prevents it; throws ApiError. */
async function retried<T>(work: () => Promise<T | null>): Promise<T> {
  for (;;) {
    try {
      return (await work())!;
    } catch (fault) {
      if (fault instanceof ApiError) throw fault;
      await sleep(RETRY_MS);
    }
  }
}

/** Whether a stream id is later than another one. */
function isAfter(id: string, other: string): boolean {
  const [[ms, number], [otherMs, otherNumber]] = [id, other].map((one) => one.split("-").map(BigInt)) as [bigint[], bigint[]];
  return ms! > otherMs! || (ms === otherMs && number! > otherNumber!);
}
