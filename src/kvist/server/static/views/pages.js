// Pages: every page that was ever used, as a cell, and above them how the cache does in numbers.

import { bytes, choice, count, el, percent, plural } from "../lib/dom.js";
import { tile } from "../lib/spark.js";
import { PageCard } from "./pages-card.js";
import { PageMap } from "./pages-map.js";

export const title = "Pages";

const SORTS = [["sequence", "By sequence"], ["age", "By age"], ["id", "By number"]];
const LEGEND = [
  ["live", "live, full"], ["filling", "live, filling"], ["shared", "shared, with its owners"], ["cached", "cached"],
  ["free", "free again"], ["hit", "just hit"],
];

export function mount(root, app) {
  const { state } = app;
  const tiles = makeTiles();
  const sentence = el("p", { class: "soft" });
  const never = el("p", { class: "soft small" });
  const table = el("table", { class: "hidden" });
  const groups = el("div", {});
  const card = new PageCard(app);
  const map = new PageMap(state, (page) => card.show(page));
  root.append(
    el("div", { class: "head" }, el("div", {}, el("h2", {}, "Pages"), sentence), groups,
      choice("Order of the pages", SORTS, "sequence", (sort) => map.sortBy(sort))),
    el("div", { class: "tiles" }, tiles.map((one) => one.node)),
    el("div", { class: "pages-body" },
      el("div", { class: "card pages-map" }, map.node, never,
        el("ul", { class: "legend", "aria-label": "Legend" },
          LEGEND.map(([kind, text]) => el("li", {}, el("i", { class: `cell ${kind}`, "aria-hidden": "true" }), text)))),
      card.node),
    table,
  );
  let visible = false;
  let described = -Infinity;

  function update() {
    if (!visible || !state.model) return;
    for (const one of tiles) one.update(state);
    map.update();
    card.refresh();
    const now = performance.now();
    if (now - described < 1000) return; // a screen reader need not hear of every step
    described = now;
    describe(state, map.group, sentence, never, table);
    offerGroups(state, groups, map);
  }

  state.addEventListener("change", update);
  state.addEventListener("hit", ({ detail }) => map.flash("hit", detail));
  state.addEventListener("evicted", ({ detail }) => map.flash("evicted", detail));
  return {
    show() {
      visible = true;
      described = -Infinity;
      update();
    },
    hide() { visible = false; },
  };
}

function makeTiles() {
  const share = (part, state) => `${percent(part / state.memory.total)} of ${bytes(state.memory.total)}`;
  return [
    tile("Live", (s) => ({ value: bytes(s.memory.live), note: share(s.memory.live, s) }), (p) => p.live),
    tile("Cached", (s) => ({ value: bytes(s.memory.cached), note: share(s.memory.cached, s) }), (p) => p.cached),
    tile("Free", (s) => ({ value: bytes(s.memory.free), note: share(s.memory.free, s) }), (p) => p.free),
    tile("Wasted slots", (s) => ({ value: count(s.wasted), note: wastedNote(s) }), (p) => p.wasted),
    tile("Hit rate", (s) => ({
      value: s.rates.hitRate === null ? "–" : percent(s.rates.hitRate),
      note: `${count(s.counters.hits)} of ${plural(s.counters.queries, "token")}`,
    }), (p) => p.hitRate),
    tile("Tokens per second", (s) => ({ value: count(s.rates.tokens), note: s.status }), (p) => p.tokens),
  ];
}

function wastedNote(state) {
  const slots = state.pools.reduce((sum, pool) => sum + pool.live, 0) * state.model.page_size;
  return slots ? `${percent(state.wasted / slots)} of live slots` : "no page is live";
}

/** The same for those who do not see the map: a sentence, and a table. */
function describe(state, group, sentence, never, table) {
  const pool = state.pools[group];
  const { states, touched } = state.pages[group];
  sentence.textContent = `${count(pool.total)} pages of ${state.model.page_size} tokens, ${bytes(pool.page_bytes)} each`;
  const left = pool.total - touched;
  never.textContent = left
    ? `${plural(left, "page")} more, ${bytes(left * pool.page_bytes)}, ${left === 1 ? "was" : "were"} never used.` : "";
  let shared = 0;
  let filling = 0;
  for (let page = 0; page < touched; page += 1) {
    const owners = states[page] & 127;
    shared += owners > 1;
    filling += owners > 0 && states[page] < 128;
  }
  const rows = [["Live", pool.live], ["of them shared", shared], ["of them filling", filling], ["Cached", pool.cached],
    ["Free", pool.free], ["All", pool.total]];
  table.replaceChildren(el("caption", {}, "Pages by state"), el("tbody", {},
    rows.map(([name, number]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, count(number))))));
}

/** Models whose layers see different spans have a pool for each kind: one is shown at a time. */
function offerGroups(state, place, map) {
  if (place.childElementCount || state.pools.length < 2) return;
  const names = state.pools.map((pool, number) => [
    String(number), pool.exact ? "exact pages" : pool.window ? `window of ${count(pool.window)}` : "all positions",
  ]);
  place.append(choice("Group of layers", names, "0", (number) => map.showGroup(Number(number))));
}
