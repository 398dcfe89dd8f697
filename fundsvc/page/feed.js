/**
 * The live topics over one WebSocket, which reconnects by itself.
 *
 * connecting -> live -> waiting -> connecting -> ...
 *
 * After each welcome the feed calls `resume` of every subscription, which reads over REST what was missed, and subscribes with
 * the fields that it returns, such as `after`. The feed is live when all subscriptions are acknowledged.
 */

import { ApiError, AS_STRINGS, parse, post } from "./api.js";

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 15_000;
const WELCOME_MS_MAX = 10_000;

/** Returns the delay in ms that a stopping service gives in the reason of its close frame, else undefined. */
function delayIn(reason) {
  const found = /reconnect in (\d{1,6}) ms/.exec(reason);
  return found ? Number(found[1]) : undefined;
}

export class Feed {
  #subscriptions = new Map();
  #acknowledgements = new Map();
  #listeners = new Set();
  #connection = null;
  #failures = 0;
  #ids = 0;
  #token = null;
  #retry = 0;

  /** "connecting", "live" or "waiting". */
  state = "connecting";

  /** The time of the last received message in ms, 0 before the first. */
  receivedAt = 0;

  /** Why the last connection ended. */
  reason = "";

  /** Called with the error when the service rejects the token. The feed continues without it. */
  tokenRejected = () => {};

  constructor() {
    addEventListener("online", () => this.#reconnectNow());
    addEventListener("offline", () => this.drop("the browser is offline"));
    document.addEventListener("visibilitychange", () => document.hidden || this.#reconnectNow());
  }

  /** Connects, with a token for private topics or null. */
  start(token) {
    this.#token = token;
    this.#close();
    this.#connect();
  }

  /** Calls `listener` with the state now and after each change. */
  listen(listener) {
    this.#listeners.add(listener);
    listener(this.state);
  }

  /**
   * Subscribes to a topic and returns a function that unsubscribes. `receive(subject, data)` is called for each push;
   * `resume()` reads what was missed and returns further fields of the subscription.
   */
  subscribe(topic, { receive, resume = async () => ({}), isPrivate = false }) {
    const subscription = { topic, receive, resume, isPrivate };
    this.#subscriptions.set(topic, subscription);
    const connection = this.#connection;
    if (connection?.welcome)
      this.#join(subscription).catch((error) => this.#connection === connection && this.drop(error.message));
    return () => {
      if (this.#subscriptions.get(topic) !== subscription) return;
      this.#subscriptions.delete(topic);
      if (this.#connection?.welcome) this.#send("unsubscribe", { topic, privateChannel: isPrivate, response: false });
    };
  }

  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    for (const listener of this.#listeners) listener(state);
  }

  async #connect() {
    clearTimeout(this.#retry);
    const connection = { socket: null, welcome: false, timers: [] };
    this.#connection = connection;
    this.#setState("connecting");
    try {
      const bullet = await post(this.#token ? "bullet-private" : "bullet-public", this.#token);
      if (this.#connection === connection) this.#open(connection, bullet);
    } catch (error) {
      if (this.#connection !== connection) return;
      if (this.#token && error instanceof ApiError && error.isAccess) this.#removeToken(error);
      else this.drop(error.message);
    }
  }

  #removeToken(error) {
    this.#token = null;
    this.tokenRejected(error);
    this.#connect();
  }

  #open(connection, bullet) {
    const [server] = bullet.instanceServers;
    const url = new URL(server.endpoint);
    url.search = new URLSearchParams({ token: bullet.token, connectId: String(Date.now()), ...AS_STRINGS });
    connection.socket = new WebSocket(url);
    connection.server = server;
    connection.socket.onmessage = (event) => this.#handle(connection, parse(event.data));
    connection.socket.onclose = ({ reason }) =>
      this.#connection === connection && this.drop(reason || "the connection was closed", delayIn(reason));
    const check = () => connection.welcome || this.drop("the service did not send a welcome");
    connection.timers.push(setTimeout(check, WELCOME_MS_MAX));
  }

  #handle(connection, frame) {
    if (this.#connection !== connection) return;
    this.receivedAt = Date.now();
    if (frame.type === "welcome") this.#resubscribe(connection);
    else if (frame.type === "message") this.#dispatch(frame);
    else if (frame.type === "ack") this.#acknowledge(frame.id);
    else if (frame.type === "error") this.#acknowledge(frame.id, new ApiError(400, frame.code, frame.data));
  }

  async #resubscribe(connection) {
    connection.welcome = true;
    connection.timers.push(setInterval(() => this.#ping(connection), connection.server.pingInterval));
    try {
      await Promise.all([...this.#subscriptions.values()].map((subscription) => this.#join(subscription)));
    } catch (error) {
      if (this.#connection === connection) this.drop(error.message);
    }
    if (this.#connection !== connection) return;
    this.#failures = 0;
    this.#setState("live");
  }

  /** Subscribes to one topic. Removes a subscription that the service rejects permanently; throws if a retry may succeed. */
  async #join(subscription) {
    try {
      await this.#subscribe(subscription);
    } catch (error) {
      if (!(error instanceof ApiError && error.isFinal)) throw error;
      this.#subscriptions.delete(subscription.topic);
    }
  }

  async #subscribe(subscription) {
    const { topic, isPrivate } = subscription;
    if (isPrivate && !this.#token) return;
    const connection = this.#connection;
    const fields = await subscription.resume();
    if (this.#connection !== connection || this.#subscriptions.get(topic) !== subscription) return;
    const id = this.#send("subscribe", { topic, privateChannel: isPrivate, response: true, ...fields });
    await new Promise((resolve, reject) => this.#acknowledgements.set(id, { resolve, reject }));
  }

  #send(type, fields = {}) {
    const id = String(++this.#ids);
    this.#connection.socket.send(JSON.stringify({ id, type, ...fields }));
    return id;
  }

  #acknowledge(id, error) {
    const waiting = this.#acknowledgements.get(id);
    this.#acknowledgements.delete(id);
    if (error) waiting?.reject(error);
    else waiting?.resolve();
  }

  /** Passes a push on. Balances of a subscription to all funds arrive under the topic of each fund. */
  #dispatch({ topic, subject, data }) {
    const family = `${topic.split(":")[0]}:all`;
    (this.#subscriptions.get(topic) ?? this.#subscriptions.get(family))?.receive(subject, data);
  }

  #ping(connection) {
    const sentAt = Date.now();
    this.#send("ping");
    const isLate = () => this.#connection === connection && this.receivedAt < sentAt;
    const check = () => isLate() && this.drop("the service did not answer a ping");
    connection.timers.push(setTimeout(check, connection.server.pingTimeout));
  }

  /**
   * Closes the connection and reconnects after a delay: that of the service, or one that doubles each time, with jitter to
   * spread clients.
   */
  drop(reason, delay = this.#nextDelay()) {
    this.#close();
    this.reason = reason;
    this.#setState("waiting");
    this.#retry = setTimeout(() => this.#connect(), delay);
  }

  #nextDelay() {
    return Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures++) * (0.5 + Math.random() / 2);
  }

  #close() {
    const connection = this.#connection;
    this.#connection = null;
    connection?.timers.forEach(clearTimeout);
    connection?.socket?.close();
    for (const { reject } of this.#acknowledgements.values()) reject(new ApiError(0, "", "disconnected"));
    this.#acknowledgements.clear();
    clearTimeout(this.#retry);
  }

  /** Reconnects at once when the network returns or the page becomes visible. */
  #reconnectNow() {
    if (this.state === "waiting") this.#connect();
  }
}
