// The engine as last told: follows /live/feed and keeps a copy, page by page. Views read it; only the feed changes it.
//
// A page is one byte: its owners (0 to 127, where 127 is "or more") + 128 if it is sealed, that is full and findable.
//   0 free | 128 cached | 1..127 live and filling | 129.. live and sealed | more than one owner: shared

import { Rates } from "./rates.js";

export const OWNERS = 127;
export const SEALED = 128;
const RETRY = [500, 1000, 2000, 5000]; // milliseconds
const REFUSALS = { 429: "too many are looking", 503: "the model is loading, or stops" };
const SILENCE = 40_000; // milliseconds without a sign of life, after which the connection counts as lost
const KEPT = 256; // requests that ended

function decode(base64, Kind) {
  const raw = atob(base64);
  const data = Uint8Array.from(raw, (character) => character.charCodeAt(0));
  return Kind === Uint8Array ? data : new Kind(data.buffer);
}

/**
 * Dispatches "change", at most once a frame, and then "hit" ({group, pages}) and "evicted" ({group, pages}) at once.
 *
 * model: {name, layers, page_size, bytes_per_token, ...}; pools: one {total, free, cached, live, page_bytes, ...} for
 * each group of layers; pages: for each group {states: Uint8Array, stamps: when a page last changed (only their order
 * means something), touched: how many of the first pages were ever used}; sequences: Map of id to {id, request, mine,
 * state, prompt, generated, limit, slots: tokens in its pages, pages: ids for each group, where -1 is one that was let
 * go of}, in the order in which they came;
 * requests: those that ended, the newest last; rates: see rates.js.
 */
export class LiveState extends EventTarget {
  model = null;
  pools = [];
  pages = [];
  sequences = new Map();
  requests = [];
  counters = { queries: 0, hits: 0, tokens: 0 };
  rates = new Rates();
  connected = false;
  status = "connecting";
  #clock = 0;
  #due = false;

  /** Bytes of all pools: {total, live, cached, free}. */
  get memory() {
    const sum = (name) => this.pools.reduce((all, pool) => all + pool[name] * pool.page_bytes, 0);
    return { total: sum("total"), live: sum("live"), cached: sum("cached"), free: sum("free") };
  }

  /** Slots of live pages that hold no token. */
  get wasted() {
    return this.pools.reduce((all, pool) => all + pool.wasted, 0);
  }

  /** Follow the feed for good; it is asked for again whenever it breaks. */
  async start(stream, ApiError) {
    setInterval(() => { if (this.rates.tick(this)) this.#changed(); }, 500);
    for (let failures = 0; ; failures += 1) {
      try {
        const silent = new AbortController();
        let timer = setTimeout(() => silent.abort(), SILENCE);
        await stream("/live/feed", { signal: silent.signal }, (event) => {
          clearTimeout(timer);
          timer = setTimeout(() => silent.abort(), SILENCE);
          failures = 0;
          this.#take(event);
        }).finally(() => clearTimeout(timer));
        this.#lost("reconnecting");
      } catch (error) {
        if (!(error instanceof ApiError) && error.name !== "AbortError") throw error;
        this.#lost(REFUSALS[error.status] ?? "reconnecting");
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY[Math.min(failures, RETRY.length - 1)]));
    }
  }

  /** Owners of a page, and whether it is sealed. */
  page(group, id) {
    const byte = this.pages[group].states[id];
    return { owners: byte & OWNERS, sealed: byte >= SEALED };
  }

  #lost(status) {
    this.connected = false;
    this.status = status;
    this.#changed();
  }

  #take(event) {
    if (event.type === "snapshot") this.#snapshot(event);
    else if (event.type === "delta") this.#delta(event);
    else return; // a sign of life
    this.pools = event.pools;
    this.counters = event.counters;
    this.rates.add(event.time, this);
    const running = [...this.sequences.values()].filter((one) => one.state === "running").length;
    this.connected = true;
    this.status = running ? `${running} running` : "ready";
    this.#changed();
  }

  #snapshot(event) {
    this.model = event.model;
    this.pages = event.pages.map((told, group) => {
      const total = event.pools[group].total;
      const states = new Uint8Array(total);
      states.set(decode(told.states, Uint8Array));
      const stamps = new Float64Array(total);
      for (const page of decode(told.order, Uint32Array)) stamps[page] = ++this.#clock;
      states.forEach((byte, page) => { if (byte & OWNERS) stamps[page] = ++this.#clock; });
      return { states, stamps, touched: told.touched };
    });
    this.sequences = new Map();
    for (const told of event.sequences) this.#sequence(told);
    this.requests = event.requests;
    this.rates.restart();
  }

  #delta(event) {
    event.pages.forEach((changed, group) => {
      const { states, stamps } = this.pages[group];
      for (let i = 0; i < changed.length; i += 2) {
        states[changed[i]] = changed[i + 1];
        stamps[changed[i]] = ++this.#clock;
      }
      this.pages[group].touched = event.touched[group];
    });
    for (const id of event.gone) this.sequences.delete(id);
    for (const told of event.sequences) this.#sequence(told);
    this.requests = [...this.requests, ...event.requests].slice(-KEPT);
    for (const [group, pages] of event.hits) this.dispatchEvent(new CustomEvent("hit", { detail: { group, pages } }));
    for (const [group, pages] of event.evicted) {
      this.dispatchEvent(new CustomEvent("evicted", { detail: { group, pages } }));
    }
  }

  /** A sequence as it is now; of its pages only those from `from` on are told, group by group. */
  #sequence(told) {
    const known = this.sequences.get(told.id);
    const pages = told.pages.map(([from, ids], group) => [...(known?.pages[group] ?? []).slice(0, from), ...ids]);
    this.sequences.set(told.id, { ...told, pages });
  }

  #changed() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.dispatchEvent(new Event("change"));
    });
  }
}
