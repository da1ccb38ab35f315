// Rates and short histories, made of the feed's counters: what the small charts show.

const EVERY = 0.5; // seconds between two points
const POINTS = 120; // a minute
const WINDOW = 1; // seconds that tokens per second is taken over

/** `history` has points {time, tokens, hitRate, live, cached, free, wasted}; `tokens` is tokens per second now. */
export class Rates {
  history = [];
  tokens = 0;
  hitRate = null; // of all prompt tokens since the start; null before any
  #recent = []; // [time, tokens] of the last second and a bit
  #told = null; // when the last event came, here and there

  /** Forget what counted from another beginning. */
  restart() {
    this.#recent = [];
  }

  /** Take note of the state after an event. time: the server's, in seconds. */
  add(time, state) {
    const { tokens, queries, hits } = state.counters;
    this.#told = { time, at: performance.now() / 1000 };
    this.#recent.push([time, tokens]);
    this.hitRate = queries ? hits / queries : null;
    this.#point(time, state);
  }

  /** Go on with time where nothing happens, so that the charts do. Whether something changed. */
  tick(state) {
    if (!this.#told) return false;
    const time = this.#told.time + performance.now() / 1000 - this.#told.at;
    return this.#point(time, state);
  }

  #point(time, state) {
    while (this.#recent.length > 1 && this.#recent[1][0] <= time - WINDOW) this.#recent.shift();
    const [from, before] = this.#recent[0] ?? [time, 0];
    const span = Math.max(time - from, WINDOW);
    this.tokens = this.#recent.length ? (this.#recent.at(-1)[1] - before) / span : 0;
    const last = this.history.at(-1);
    if (last && time - last.time < EVERY) return false;
    const { live, cached, free } = state.memory;
    this.history.push({ time, tokens: this.tokens, hitRate: this.hitRate, live, cached, free, wasted: state.wasted });
    if (this.history.length > POINTS) this.history.shift();
    return true;
  }
}
