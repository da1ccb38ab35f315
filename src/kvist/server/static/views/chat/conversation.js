// One conversation, kept by the server as a session: answer, stop, fork, roll back, and the same answer uncached.

import { compare, refused } from "../../lib/compare.js";

const MOST_COMPARED = 64; // tokens of an answer that is made again without the cache

/**
 * @typedef {object} Uncached the same answer without the cache
 * @property {string} text
 * @property {"waiting"|"running"|"done"|"failed"} state
 * @property {number} [seconds] @property {number} [projections] @property {string} [error]
 *
 * @typedef {object} Message
 * @property {"user"|"assistant"|"system"} role @property {string} content
 * @property {boolean} [busy] an answer under way
 * @property {object} [usage] @property {object} [report] what it cost: `usage` and `kvist` of the API
 * @property {number} [seconds] @property {number} [speed] measured here; tokens a second, from the first token on
 * @property {string} [reason] why it ended @property {string} [error] @property {number} [seed]
 * @property {Uncached} [uncached]
 */

/** Dispatches "change": messages came or went, or it is busy or idle now; and "text" ({detail: message}): one has grown. */
export class Conversation extends EventTarget {
  /** @type {Message[]} */ messages = [];
  name = null; // of the session; none before the first message
  error = null; // what went wrong outside of an answer
  busy = false;
  #stale = false; // the server could not be asked what it has
  #abort = null;

  constructor(app, title) {
    super();
    this.app = app;
    this.title = title;
  }

  /** Go on with a session that there is. */
  async resume(name) {
    this.name = name;
    await this.#sync();
  }

  /** Say something and have it answered. Returns what could not be said, so that it is not lost. */
  async say(text, settings) {
    const said = { role: "user", content: text };
    await this.#run(async (signal) => {
      if (!this.name) this.name = (await this.app.api("/v1/sessions", { body: {}, signal })).name;
      this.messages.push(said);
      await this.#answer([{ ...said }], settings, signal);
    });
    return this.messages.includes(said) ? "" : text;
  }

  /** Make the last answer anew, or answer what has no answer. */
  async again(settings) {
    await this.#run(async (signal) => {
      if (this.messages.at(-1)?.role === "assistant") await this.#drop(1, signal);
      await this.#answer([], settings, signal);
    });
  }

  /** Drop all messages behind the first `kept`. */
  async rollBack(kept) {
    await this.#run((signal) => this.#drop(this.messages.length - kept, signal));
  }

  /** Another conversation that begins with the first `kept` messages of this one; null if it could not be made. */
  async fork(kept, title) {
    const other = new Conversation(this.app, title);
    await this.#run(async (signal) => {
      other.name = (await this.app.api(`${this.#path}/fork`, { body: {}, signal })).name;
      other.messages = this.messages.map((message) => ({ ...message }));
      if (kept < other.messages.length) await other.#drop(other.messages.length - kept, signal);
    });
    return other.name && !this.error ? other : null;
  }

  /** Forget it, here and on the server. */
  async forget() {
    this.stop();
    if (this.name) await this.app.api(this.#path, { method: "DELETE" }).catch(() => {}); // it may be gone already
  }

  stop() {
    this.#abort?.abort();
  }

  get #path() {
    return `/v1/sessions/${encodeURIComponent(this.name)}`;
  }

  /** Do one thing at a time; what fails is told in the last answer, or in `error`. */
  async #run(work) {
    if (this.busy) return;
    this.busy = true;
    this.error = null;
    this.#abort = new AbortController();
    this.#changed();
    try {
      if (this.#stale) await this.#sync();
      await work(this.#abort.signal);
    } catch (error) {
      await this.#recover(error);
    } finally {
      this.busy = false;
      this.#changed();
    }
  }

  /** After a stop or an error: what does the server have? */
  async #recover(error) {
    const last = this.messages.at(-1);
    const told = error.name === "AbortError" ? null : error.message;
    if (told && error.status === undefined) console.error(error); // a defect of this page
    if (last?.busy) Object.assign(last, { busy: false, error: told, reason: told ? undefined : "stopped" });
    else this.error = told;
    try {
      if (this.name) await this.#sync();
    } catch (lost) {
      this.#stale = true;
      this.error = told ?? lost.message;
      if (last?.error) this.messages.splice(-2); // the question goes back to who asked it
    }
  }

  /** Take the server's messages over, once it is idle; what was measured here stays with those that are the same. */
  async #sync() {
    let told = await this.app.api(this.#path);
    for (let waits = 0; told.busy && waits < 50; waits += 1) {
      await new Promise((resolve) => setTimeout(resolve, 60));
      told = await this.app.api(this.#path);
    }
    this.#stale = false;
    const error = this.messages.at(-1)?.error;
    this.messages = told.messages.map((message, i) => {
      const own = this.messages[i];
      if (own?.role !== message.role) return { ...message };
      return Object.assign(own, { content: message.content });
    });
    if (error && this.messages.at(-1)?.error !== error) this.error = error;
  }

  async #drop(count, signal) {
    if (!count) return;
    const told = await this.app.api(`${this.#path}/rollback`, { body: { messages: count }, signal });
    this.messages.length = told.messages.length;
    this.#changed();
  }

  async #answer(said, settings, signal) {
    const seed = settings.seed ?? Math.floor(Math.random() * 2 ** 31);
    const most = settings.compare ? Math.min(settings.maxTokens, MOST_COMPARED) : settings.maxTokens;
    const answer = { role: "assistant", content: "", busy: true, seed };
    if (settings.compare) answer.uncached = { text: "", state: "waiting" };
    this.messages.push(answer);
    this.#changed();
    const asked = { max_tokens: most, temperature: settings.temperature, seed };
    await this.#served(answer, { ...asked, messages: said }, signal);
    if (settings.compare) await this.#uncached(answer, asked, signal);
  }

  /** The answer as everybody gets it: with the cache, in the session. */
  async #served(answer, asked, signal) {
    const begin = performance.now();
    let first = null;
    let last = begin;
    const body = { ...asked, session: this.name, stream: true, stream_options: { include_usage: true } };
    await this.app.stream("/v1/chat/completions", { body, signal }, (event) => {
      if (event.error) throw refused(event.error);
      const choice = event.choices[0];
      if (choice?.delta.content) {
        first ??= performance.now();
        last = performance.now();
        answer.content += choice.delta.content;
        this.#grown(answer);
      }
      answer.reason = choice?.finish_reason ?? answer.reason;
      answer.report = event.kvist ?? answer.report;
      answer.usage = event.usage ?? answer.usage;
    });
    answer.seconds = (last - begin) / 1000;
    const others = (answer.usage?.completion_tokens ?? 0) - 1; // behind the first
    answer.speed = others > 0 && last > first ? (others * 1000) / (last - first) : null;
    answer.busy = false;
    this.#changed();
  }

  /** The same without the cache. It comes second, so that neither slows the other down and both times are true. */
  async #uncached(answer, asked, signal) {
    const side = answer.uncached;
    const begin = performance.now();
    side.state = "running";
    try {
      const body = { ...asked, session: this.name, without: 1, modes: ["uncached"] };
      await compare(this.app, body, signal, (event) => {
        if (event.event !== "step") return;
        side.text += event.text;
        side.projections = event.projections_total;
        side.seconds = (performance.now() - begin) / 1000;
        this.#grown(answer);
      });
      side.state = "done";
    } catch (error) {
      side.state = "failed";
      side.error = error.name === "AbortError" ? "Stopped." : error.message;
    }
    this.#changed();
  }

  #grown(message) {
    this.dispatchEvent(new CustomEvent("text", { detail: message }));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
