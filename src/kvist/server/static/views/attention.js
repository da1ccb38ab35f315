// Attention: what a head of the running model looks at in a text, and what its K/V heads cost.

import { choice, el, plural, visible } from "../lib/dom.js";
import { isDark, theme } from "../lib/theme.js";
import { scale } from "./attention/colours.js";
import { headCards } from "./attention/heads.js";
import { HeatMap } from "./attention/map.js";

export const title = "Attention";

const TEXT = "John said he was tired because he had not slept.";
const SHARES = [0, 0.05, 0.25, 0.5, 1]; // marks of the legend

export function mount(root, app) {
  let about = null; // layers and heads
  let session = null; // of a chat, instead of the text
  let asking = null;
  const box = el("textarea", { rows: 2, id: "attention-text" }, TEXT);
  const of = el("label", { for: "attention-text", class: "small soft" }, "Text");
  const source = el("p", { class: "small soft", hidden: true });
  const layer = slider("Layer");
  const head = slider("Head");
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  const trouble = el("p", { class: "error", role: "alert", hidden: true });
  const notes = el("p", { class: "small soft" });
  const kinds = el("div", {});
  const map = new HeatMap(read);
  let cards = null;

  const look = el("button", { type: "submit", class: "button primary" }, "Look");
  const form = el("form", { class: "asked" }, el("div", { class: "asked-text" }, of, box, source), look);
  const legend = el("div", { class: "weight-scale" });
  root.append(
    el("div", { class: "head" }, el("h2", {}, "Attention"),
      choice("Colours by", [["root", "Square root"], ["linear", "Linear"]], "root", (value) => {
        map.root = value === "root";
        map.draw();
        drawLegend();
      })),
    form,
    el("div", { class: "attention-body" },
      el("figure", { class: "card" },
        el("div", { class: "pickers" }, layer.node, head.node), trouble, readout, map.node,
        el("figcaption", {}, legend, notes)),
      el("section", { class: "card kinds-card" },
        el("h3", {}, "Which query heads read which K/V heads"),
        el("p", { class: "small soft" }, "The cache holds K and V of each K/V head, in every layer. The fewer there are, the smaller it is."), kinds)),
  );

  function slider(name) {
    const input = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": name });
    const output = el("output", {}, "0");
    input.addEventListener("input", () => {
      output.textContent = `${input.value} of ${input.max}`;
      ask();
    });
    return {
      node: el("label", { class: "picker" }, el("span", {}, name), input, output),
      get value() { return Number(input.value); },
      set(value, most = Number(input.max)) {
        input.max = most;
        input.value = value;
        output.textContent = `${input.value} of ${most}`;
      },
    };
  }

  async function begin() {
    about = await app.api("/live/attention");
    layer.set(Math.min(about.layers - 1, Math.round(about.layers / 3)), about.layers - 1);
    head.set(0, about.heads.query - 1);
    cards = headCards(about.bytes_per_token, (chosen) => {
      head.set(chosen);
      ask();
    });
    kinds.replaceChildren(cards.node);
  }

  /** Ask the server; only the newest question counts. */
  async function ask() {
    asking?.abort();
    const own = (asking = new AbortController());
    try {
      if (!about) await begin();
      const what = session ? { session } : { text: box.value };
      const data = await app.api("/live/attention", {
        body: { ...what, layer: layer.value, head: head.value }, signal: own.signal,
      });
      if (own.signal.aborted) return;
      trouble.hidden = true;
      cards.mark(data.head);
      notes.textContent = explained(data);
      map.show(data);
      drawLegend();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === undefined) throw error;
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
  }

  function explained(data) {
    const parts = [`Query head ${data.head} reads K/V head ${data.kv_head}. Nobody sees what comes later.`];
    parts.push(data.sink ? "This model has a learned sink that takes a share too: rows sum to less than 1." : "Each row sums to 1.");
    if (data.window) parts.push(`In this layer a token sees ${plural(data.window, "position")} back, its own included.`);
    if (data.softcap) parts.push(`Scores are capped softly at ${data.softcap}.`);
    if (data.tokens_left_out) {
      parts.push(`Shown are the first ${data.tokens.length} tokens; ${data.tokens_left_out} behind them change nothing here.`);
    }
    return parts.join(" ");
  }

  /** Say what is under the pointer. */
  function read(at) {
    if (!map.data) return;
    if (!at) {
      readout.textContent = "Point at a cell, or go there with the arrow keys.";
      return;
    }
    const { tokens, weights } = map.data;
    readout.replaceChildren(
      el("code", {}, visible(tokens[at.row])), ` (${at.row}) looks at `, el("code", {}, visible(tokens[at.column])), ` (${at.column}): `,
      el("strong", {}, `${(100 * weights[at.row][at.column]).toFixed(2)}%`));
  }

  function drawLegend() {
    const colours = scale(isDark());
    const steps = Array.from({ length: 11 }, (_, i) => colours[Math.round((i / 10) * (colours.length - 1))]);
    legend.replaceChildren(
      el("span", { class: "scale-bar", style: { background: `linear-gradient(90deg, ${steps.join(", ")})` } }),
      el("span", { class: "scale-marks" }, SHARES.map((share) =>
        el("span", { style: { left: `${100 * map.level(share)}%` } }, `${100 * share}%`))));
    legend.classList.toggle("tight", !map.root);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  theme.addEventListener("change", drawLegend);

  function choose(name) {
    session = name || null;
    box.hidden = of.hidden = Boolean(session);
    source.hidden = !session;
    source.replaceChildren(`The conversation ${session}. `,
      el("button", { type: "button", class: "button", onclick: () => app.navigate("attention") }, "Look at a text instead"));
  }

  let shown;
  return {
    show(name) {
      if (map.data && name === shown && !name) return;
      shown = name;
      choose(name);
      ask();
    },
  };
}
