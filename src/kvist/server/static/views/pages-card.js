// What is in the page that is looked at: asked of the server, since texts are not in the feed.

import { ApiError } from "../lib/api.js";
import { count, el, plural, visible } from "../lib/dom.js";
import { sequenceName } from "../lib/names.js";

const PATIENCE = 120; // milliseconds that a pointer rests on a page before it is asked for
const AGAIN = 500; // milliseconds between two looks at a page that is changing

export class PageCard {
  #app;
  #page = null; // {group, page}
  #byte = -1;
  #timer = 0;
  #asked = 0;

  constructor(app) {
    this.#app = app;
    this.body = el("div", {});
    this.node = el("aside", { class: "card page-card", "aria-live": "polite", "aria-label": "The page looked at" }, this.body);
    this.#nothing();
  }

  /** Show a page, or null for none. */
  show(page) {
    this.#page = page;
    clearTimeout(this.#timer);
    if (page) this.#timer = setTimeout(() => this.#ask(), PATIENCE);
    else this.#nothing();
  }

  /** Look again if the page is not what it was. */
  refresh() {
    if (!this.#page || performance.now() - this.#asked < AGAIN) return;
    const { owners, sealed } = this.#app.state.page(this.#page.group, this.#page.page);
    if (owners * 2 + sealed !== this.#byte || (owners && !sealed)) this.#ask();
  }

  #nothing() {
    this.body.replaceChildren(el("h3", {}, "One page"),
      el("p", { class: "soft small" }, "Point at a cell, or go there with the arrow keys, to read the tokens in it."));
  }

  async #ask() {
    const asked = this.#page;
    const { owners, sealed } = this.#app.state.page(asked.group, asked.page);
    this.#byte = owners * 2 + sealed;
    this.#asked = performance.now();
    let told;
    try {
      told = await this.#app.api(`/live/page/${asked.group}/${asked.page}`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.body.replaceChildren(el("p", { class: "error" }, error.message));
      return;
    }
    if (this.#page === asked) this.#draw(told);
  }

  #draw(told) {
    const { page_size: size } = this.#app.state.model;
    const holders = [...this.#app.state.sequences.values()].filter((one) => one.pages[told.group]?.includes(told.page));
    const state = told.state === "live" ? (told.owners > 1 ? "shared" : "live") : told.state;
    this.body.replaceChildren(
      el("div", { class: "page-title" }, el("h3", {}, `Page ${count(told.page)}`),
        el("span", { class: "chip" }, el("i", { class: `cell ${state}`, "aria-hidden": "true" }), described(told))),
      el("dl", { class: "facts" },
        fact("Positions", told.start === null ? "–" : `${count(told.start)} to ${count(told.start + size - 1)}`),
        fact("Pages before it", told.start === null ? "–" : count(told.start / size)),
        fact("Tokens in it", told.tokens ? `${told.tokens.length} of ${size}` : "–"),
        fact("Content key", told.key ? el("code", { title: told.key }, told.key.slice(0, 12)) : "–")),
      this.#text(told),
      holders.length ? el("div", {}, el("h4", {}, "Held by"),
        el("ul", { class: "holders" }, holders.map((one) => el("li", { title: one.request }, sequenceName(one))))) : null,
    );
  }

  #text(told) {
    if (told.tokens === null) {
      const why = told.state === "free" ? "It is free: nothing is kept in it." : "Its text is not yours to read.";
      return el("p", { class: "soft small" }, why);
    }
    return el("p", { class: "tokens" }, told.tokens.map((token) => el("span", { title: `token ${token.id}` }, visible(token.text))));
  }
}

function described({ state, owners, sealed, pinned }) {
  const parts = [owners > 1 ? `shared by ${owners}` : state];
  if (owners) parts.push(sealed ? "sealed" : "filling");
  if (pinned) parts.push("pinned");
  return parts.join(", ");
}

function fact(name, value) {
  return [el("dt", {}, name), el("dd", {}, value)];
}
