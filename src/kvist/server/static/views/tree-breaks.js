// Beside the tree: of the last requests what they found, and where and why their prefix broke.

import { count, el, visible } from "../lib/dom.js";
import { requestName } from "../lib/names.js";

const SHOWN = 12;

/** What the engine's reasons mean to people. */
const REASONS = {
  full: "all that can be found was found",
  partial: "nothing longer is cached",
  evicted: "the next page had to make room",
  "never seen": "nothing begins like this",
  salt: "nothing is cached under this salt",
  off: "it was not looked up",
};

/** `node` is the list; `onChoose(request)` where one is to be shown in the tree. */
export class Breaks {
  #drawn = "";

  constructor(onChoose) {
    this.onChoose = onChoose;
    this.list = el("ol", { class: "breaks" });
    this.empty = el("p", { class: "soft small" }, "No request has ended yet.");
    this.node = el("aside", { class: "card", "aria-label": "Where prefixes broke" }, el("h3", {}, "Where prefixes broke"),
      el("p", { class: "soft small" }, "What the last requests found in the cache, and the first token that differed."), this.empty, this.list);
  }

  update(tree, requests) {
    const last = requests.filter((one) => one.mine).slice(-SHOWN).reverse();
    const there = new Set(tree.breaks.map((one) => one.request));
    const drawn = JSON.stringify([last.map((one) => one.request), [...there]]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.empty.hidden = last.length > 0;
    this.list.replaceChildren(...last.map((one) => this.#item(one, there.has(one.request))));
  }

  #item(record, there) {
    const { request, prompt, cached, reason, difference } = record;
    return el("li", {},
      el("div", { class: "break-head" }, el("strong", { title: request }, requestName(request)),
        el("span", { class: "soft small" }, `${count(cached)} of ${count(prompt)} found`)),
      el("div", { class: "found", "aria-hidden": "true", style: { "--found": cached / prompt } }, el("i")),
      el("p", { class: "small" }, difference
        ? [`at token ${count(difference.position)}: asked `, el("mark", {}, visible(difference.asked_text)),
          ", cached ", el("mark", {}, visible(difference.cached_text))]
        : el("span", { class: "soft" }, REASONS[reason] ?? reason)),
      there ? el("button", { type: "button", class: "link", onclick: () => this.onChoose(request) }, "Show in the tree") : null);
  }
}
