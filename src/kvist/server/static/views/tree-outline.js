// The tree itself: twigs in lists within lists, as a tree that arrow keys walk through. Only what is open is there.

import { el, plural, visible } from "../lib/dom.js";
import { requestName } from "../lib/names.js";

const OPEN_AT_FIRST = 150; // twigs; of a larger tree the first two levels are open
const COMMON = 24; // characters shown of what a twig has in common with the one beside it

/** `node` is the tree. */
export class Outline {
  #tree = null;
  #requests = new Map(); // name -> record, of those that ended
  #children = new Map(); // twig (null: the root) -> twigs
  #open = new Map(); // key -> whether it was opened or closed by hand
  #drawn = "";
  #focused = null; // key

  constructor() {
    this.node = el("ul", {
      class: "tree", role: "tree", "aria-label": "Prefix tree",
      onkeydown: (event) => this.#key(event), onclick: (event) => this.#click(event),
    });
  }

  update(tree, requests) {
    this.#tree = tree;
    this.#requests = new Map(requests.filter((one) => one.request).map((one) => [one.request, one]));
    this.#children = Map.groupBy(tree.twigs, (twig) => twig.parent);
    this.#draw();
  }

  /** Open or close all that can be. */
  openAll(open) {
    for (const twig of this.#tree?.twigs ?? []) this.#open.set(twig.key, open);
    this.#draw();
  }

  /** Go to where the prefix of a request broke. */
  reveal(request) {
    const broken = this.#tree?.breaks.find((one) => one.request === request);
    if (!broken) return;
    let twig = this.#tree.twigs[broken.twig];
    const { key } = twig;
    for (; twig.parent !== null; twig = this.#tree.twigs[twig.parent]) this.#open.set(this.#tree.twigs[twig.parent].key, true);
    this.#draw();
    this.#focus(this.node.querySelector(`[data-key="${key}"]`));
  }

  #isOpen(twig, level) {
    return this.#open.get(twig.key) ?? (this.#tree.twigs.length <= OPEN_AT_FIRST || level < 3);
  }

  #draw() {
    if (!this.#tree) return;
    const drawn = JSON.stringify([this.#tree, [...this.#open]]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const hadFocus = this.node.contains(document.activeElement);
    this.node.replaceChildren(...this.#items(null, 1));
    const items = [...this.node.querySelectorAll("[role=treeitem]")];
    const first = items.find((item) => item.dataset.key === this.#focused) ?? items[0];
    for (const item of items) item.tabIndex = item === first ? 0 : -1;
    if (hadFocus) first?.focus({ preventScroll: true });
  }

  #items(parent, level) {
    const tips = this.#tree.tips.filter((tip) => tip.twig === parent);
    const twigs = this.#children.get(parent) ?? [];
    return [...tips.map((tip) => this.#tip(tip, level)), ...twigs.map((twig) => this.#twig(twig, level))];
  }

  #twig(twig, level) {
    const inside = twig.children > 0 || this.#tree.tips.some((tip) => tip.twig === twig.id);
    const open = inside && this.#isOpen(twig, level);
    const breaks = this.#tree.breaks.filter((one) => one.twig === twig.id);
    return el("li", {
      role: "treeitem", class: twig.live ? "live" : "cached", "aria-level": level,
      "aria-expanded": inside ? String(open) : undefined, dataset: { key: twig.key },
    },
    el("div", { class: "twig" },
      el("span", { class: "toggle", "aria-hidden": "true" }),
      el("span", { class: "twig-pages" }, el("i", { class: `cell ${twig.owners > 1 ? "shared" : twig.live ? "live" : "cached"}`, "aria-hidden": "true" }),
        plural(twig.count, "page"), twig.owners > 1 ? ` · ${twig.owners} owners` : twig.live ? " · live" : ""),
      el("p", { class: "twig-text" }, twig.same ? common(visible(twig.same)) : null, visible(twig.text), twig.cut ? "…" : ""),
      breaks.map((one) => this.#break(one))),
    open ? el("ul", { role: "group" }, this.#items(twig.id, level + 1)) : null);
  }

  #tip(tip, level) {
    return el("li", { role: "treeitem", class: "tip", "aria-level": level, dataset: { key: `${tip.request} ${tip.index}` } },
      el("div", { class: "twig" },
        el("span", { class: "tip-mark", "aria-hidden": "true" }),
        el("span", { class: "twig-pages" }, `${tip.name} · ${plural(tip.generated, "token")} generated`),
        el("p", { class: "twig-text" }, visible(tip.text))));
  }

  #break({ request, page, slot }) {
    const difference = this.#requests.get(request)?.difference;
    if (!difference) return null;
    return el("p", { class: "break" }, el("strong", {}, requestName(request)),
      ` left here, in page ${page + 1} of the twig at slot ${slot + 1}: it asked `,
      el("mark", {}, visible(difference.asked_text)), " where ", el("mark", {}, visible(difference.cached_text)), " is cached");
  }

  // -- walking ---------------------------------------------------------------------------------------------------

  #click(event) {
    const item = event.target.closest("[role=treeitem]");
    if (!item) return;
    this.#toggle(item);
    this.#focus(this.node.querySelector(`[data-key="${CSS.escape(item.dataset.key)}"]`));
  }

  #toggle(item, open = item.ariaExpanded !== "true") {
    if (item.ariaExpanded === null) return;
    this.#focused = item.dataset.key;
    this.#open.set(item.dataset.key, open);
    this.#draw();
  }

  #focus(item) {
    if (!item) return;
    for (const other of this.node.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    item.tabIndex = 0;
    this.#focused = item.dataset.key;
    item.focus();
  }

  #key(event) {
    const item = event.target.closest("[role=treeitem]");
    const items = [...this.node.querySelectorAll("[role=treeitem]")];
    const at = items.indexOf(item);
    const parent = item?.parentElement.closest("[role=treeitem]");
    const act = {
      ArrowDown: () => this.#focus(items[at + 1]),
      ArrowUp: () => this.#focus(items[at - 1]),
      Home: () => this.#focus(items[0]),
      End: () => this.#focus(items.at(-1)),
      ArrowRight: () => (item.ariaExpanded === "false" ? this.#toggle(item, true) : this.#focus(item.querySelector("[role=treeitem]"))),
      ArrowLeft: () => (item.ariaExpanded === "true" ? this.#toggle(item, false) : this.#focus(parent)),
      Enter: () => this.#toggle(item),
      " ": () => this.#toggle(item),
    }[event.key];
    if (!act || at < 0) return;
    event.preventDefault();
    act();
  }
}

/** What a twig's neighbour begins with too: of a long one the end, since there they part. */
function common(text) {
  const short = text.length > COMMON + 1 ? `…${text.slice(-COMMON)}` : text;
  return el("span", { class: "same", title: `The same as beside it: ${text}` }, short);
}
