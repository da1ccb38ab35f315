// Tree: what is cached as a tree of prefixes, the sequences that run at its tips, and where requests left it.

import { ApiError } from "../lib/api.js";
import { count, el, plural } from "../lib/dom.js";
import { sequenceName } from "../lib/names.js";
import { Breaks } from "./tree-breaks.js";
import { Outline } from "./tree-outline.js";

export const title = "Tree";

const EVERY = 1000; // milliseconds between two looks, while something changes
const PATIENCE = 10; // or so many times what the last look took: a large tree is looked at less often

export function mount(root, app) {
  const sentence = el("p", { class: "soft" });
  const left = el("p", { class: "soft small" });
  const empty = el("p", { class: "note" }, "Nothing is cached yet. Ask something, and its prefix grows here.");
  const outline = new Outline();
  const breaks = new Breaks((request) => outline.reveal(request));
  root.append(
    el("div", { class: "head" }, el("div", {}, el("h2", {}, "Prefix tree"), sentence),
      el("div", { class: "tree-buttons" },
        el("button", { type: "button", class: "button", onclick: () => outline.openAll(true) }, "Open all"),
        el("button", { type: "button", class: "button", onclick: () => outline.openAll(false) }, "Close all"))),
    el("div", { class: "tree-body" },
      el("div", { class: "card tree-card" }, empty, outline.node, left), breaks.node),
  );
  let visible = false;
  let asking = false;
  let next = 0; // when it may be asked for again
  let known = ""; // what the engine looked like when it was asked last

  /** Ask again where something has happened since. */
  async function look() {
    const { state } = app;
    if (!visible || asking || !state.model || performance.now() < next) return;
    const now = signature(state);
    if (now === known) return;
    asking = true;
    const begin = performance.now();
    try {
      const tree = await app.api("/live/tree");
      known = now;
      draw(tree);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      left.textContent = error.message;
    } finally {
      asking = false;
      next = performance.now() + Math.max(EVERY, PATIENCE * (performance.now() - begin));
    }
  }

  function draw(tree) {
    const { state } = app;
    empty.hidden = tree.twigs.length + tree.tips.length > 0;
    sentence.textContent = `${plural(tree.pages, "page")} of ${tree.page_size} tokens that can be found again, ` +
      `in ${plural(tree.twigs.length, "twig")}; ${plural(tree.tips.length, "sequence")} growing`;
    const { twigs, pages } = tree.left_out;
    left.textContent = pages ? `${plural(pages, "page")} in ${count(twigs)} or more twigs are left out: they were used longest ago.` : "";
    const generated = new Map([...state.sequences.values()].map((one) => [`${one.request} ${one.index}`, one.generated]));
    for (const tip of tree.tips) {
      tip.name = sequenceName(tip);
      tip.generated = generated.get(`${tip.request} ${tip.index}`) ?? 0;
    }
    outline.update(tree, state.requests);
    breaks.update(tree, state.requests);
  }

  app.state.addEventListener("change", look);
  return {
    show() {
      visible = true;
      known = "";
      look();
    },
    hide() { visible = false; },
  };
}

/** Changes whenever the tree may have. */
function signature({ counters, pools, requests, sequences, rates }) {
  return JSON.stringify([counters, pools, requests.length, sequences.size, requests.at(-1)?.request, rates.tokens > 0 && counters.tokens]);
}
