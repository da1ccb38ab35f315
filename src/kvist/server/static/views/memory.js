// Memory: what the requests that ran held in pages, beside what an engine that preallocates would have reserved.

import { bytes, choice, count, el, percent, plural } from "../lib/dom.js";
import { requestName } from "../lib/names.js";
import { Matrices } from "./memory-matrices.js";

export const title = "Memory";

const SHOWN = 12; // requests in the list, before all are asked for
const POLICIES = [["asked", "prompt + max_tokens"], ["longest", "the longest context"]];
const ITEM_BYTES = { f32: 4, f16: 2, bf16: 2 };

export function mount(root, app) {
  const { state } = app;
  let policy = "asked";
  let all = false;
  let visible = false;
  let drawn = "";
  const sentence = el("p", { class: "soft" });
  const totals = el("div", { class: "totals" });
  const list = el("ol", { class: "reserved-list" });
  const more = el("button", { type: "button", class: "button", onclick: () => { all = !all; update(); } });
  const sums = el("div", { class: "sums" });
  const matrices = new Matrices(app);
  root.append(
    el("div", { class: "head" }, el("div", {}, el("h2", {}, "Memory"), sentence),
      choice("What an engine that preallocates reserves for a request", POLICIES, policy, (chosen) => { policy = chosen; update(); })),
    el("div", { class: "card" }, totals),
    el("div", { class: "card" },
      el("div", { class: "head" }, el("h3", {}, "Request by request"), legend()), list, more),
    el("div", { class: "columns" },
      el("div", { class: "card" }, el("h3", {}, "The arithmetic"), sums), matrices.node),
  );

  function update() {
    if (!visible || !state.model) return;
    matrices.update();
    const now = JSON.stringify([policy, all, state.model, state.requests.length, state.requests.at(-1), state.pools[0].total]);
    if (now === drawn) return;
    drawn = now;
    const rows = state.requests.map((record) => measured(record, policy, state.model)).reverse();
    sentence.textContent = rows.length
      ? `Preallocated against paged, for the very requests that ran: the last ${count(rows.length)} that ended`
      : "No request has ended yet. When one does, it is measured here.";
    drawTotals(totals, rows);
    const most = Math.max(...rows.map((row) => Math.max(row.reserved, row.held)), 1);
    list.replaceChildren(...(all ? rows : rows.slice(0, SHOWN)).map((row) => item(row, most, state.model)));
    more.hidden = rows.length <= SHOWN;
    more.textContent = all ? "Show fewer" : `Show all ${count(rows.length)}`;
    sums.replaceChildren(...arithmetic(state));
  }

  state.addEventListener("change", update);
  return {
    show() {
      visible = true;
      update();
    },
    hide() { visible = false; },
  };
}

/** A request's bytes: reserved by one engine, held by the other, and what tokens fill of either. */
function measured(record, policy, model) {
  const tokens = record.branches * (policy === "longest" ? model.max_model_len : record.most);
  const stored = record.branches * record.prompt + record.generated - record.branches; // the last token is never run
  return {
    ...record,
    reserved: tokens * model.bytes_per_token,
    stored: Math.max(stored, 0) * model.bytes_per_token,
    reservedTokens: tokens,
    spare: record.own - record.used,
  };
}

function drawTotals(place, rows) {
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  const [reserved, stored, own, used] = ["reserved", "stored", "own", "used"].map(sum);
  if (!reserved) return place.replaceChildren();
  place.replaceChildren(
    total("Preallocated", reserved, stored, reserved, "each request on its own, at its longest"),
    total("Paged", own, used, reserved, "pages as they fill up, shared ones counted once"),
    el("p", { class: "ratio" }, el("strong", {}, `${(reserved / own).toFixed(1)}×`),
      " as much memory would be set aside without pages"));
}

function total(name, size, filled, most, note) {
  return el("div", { class: "total" },
    el("div", { class: "total-head" }, el("h3", {}, name), el("span", { class: "soft small" }, note),
      el("strong", {}, bytes(size)), el("span", { class: "wasted" }, `${percent(1 - filled / size)} wasted`)),
    el("div", { class: "track", "aria-hidden": "true", style: { "--size": size / most } },
      el("i", { class: "part filled", style: { "--part": filled / size } }),
      el("i", { class: "part waste", style: { "--part": 1 - filled / size } })));
}

function item(row, most, model) {
  const page = (row.held / row.pages) / most;
  const part = (kind, size) => el("i", { class: `part ${kind}`, style: { "--part": size / row.held } });
  const found = row.held - row.own;
  const wasted = 1 - row.stored / row.reserved;
  const told = `${plural(row.prompt, "token")} + ${count(row.generated)}${row.branches > 1 ? ` in ${row.branches} branches` : ""}`;
  return el("li", {},
    el("div", { class: "request-head" }, el("strong", { title: row.request }, requestName(row.request)), el("span", { class: "soft small" }, told)),
    el("div", { class: "lanes", "aria-hidden": "true" },
      el("div", { class: "lane reserved", style: { "--size": row.reserved / most } },
        el("i", { class: "part filled", style: { "--part": Math.min(row.stored / row.reserved, 1) } }),
        el("i", { class: "part waste", style: { "--part": Math.max(wasted, 0) } })),
      el("div", { class: `lane paged ${page > 0.008 ? "ruled" : ""}`, style: { "--size": row.held / most, "--page": 1 / row.pages } },
        part("found", found), part("filled", row.used), part("spare", row.spare))),
    el("p", { class: "request-told small" },
      el("span", {}, `${bytes(row.reserved)} reserved, `, el("b", {}, `${percent(Math.max(wasted, 0))} wasted`)),
      el("span", {}, `${plural(row.pages, "page")}, ${bytes(row.held)}: `, row.found ? `${count(row.found)} found in the cache, ` : "", el("b", {}, `${plural(Math.round(row.spare / model.bytes_per_token), "slot")} empty`))));
}

function legend() {
  const entries = [["filled", "tokens"], ["waste", "reserved for nothing"], ["found", "pages found in the cache"], ["spare", "slots of a page left empty"]];
  return el("ul", { class: "legend flat" }, entries.map(([kind, text]) => el("li", {}, el("i", { class: `swatch part ${kind}`, "aria-hidden": "true" }), text)));
}

/** From a token to the pool, in steps that multiply. */
function arithmetic(state) {
  const { model, pools } = state;
  const item = ITEM_BYTES[model.kv_cache_dtype];
  const exact = item && 2 * model.layers * model.kv_heads * model.head_dim * item === model.bytes_per_token;
  const step = (name, formula, result) => el("div", { class: "sum" }, el("span", {}, name), el("code", {}, formula), el("strong", {}, result));
  return [
    step("A token", exact
      ? `2 (K and V) × ${model.layers} layers × ${model.kv_heads} KV heads × ${model.head_dim} × ${item} bytes`
      : `${model.kv_cache_dtype}, all ${model.layers} layers`, `${count(model.bytes_per_token)} B`),
    ...pools.flatMap((pool) => [
      step(pools.length > 1 ? pageName(pool) : "A page", pools.length > 1 ? `${model.page_size} slots` : `${model.page_size} slots × ${count(model.bytes_per_token)} B`, bytes(pool.page_bytes)),
      step("The pool", `${count(pool.total)} pages × ${bytes(pool.page_bytes)}`, bytes(pool.total * pool.page_bytes)),
    ]),
    step("The longest context", `${count(model.max_model_len)} tokens × ${count(model.bytes_per_token)} B`, bytes(model.max_model_len * model.bytes_per_token)),
  ];
}

function pageName(pool) {
  return pool.exact ? "An exact page" : pool.window ? `A page, window of ${count(pool.window)}` : "A page that all see";
}
