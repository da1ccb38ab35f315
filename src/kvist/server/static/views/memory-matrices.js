// K and V of the sequence that began last, as two matrices that grow by a column with every token.

import { ApiError } from "../lib/api.js";
import { count, el, plural, visible } from "../lib/dom.js";
import { sequenceName } from "../lib/names.js";
import { colour, theme } from "../lib/theme.js";

const EVERY = 300; // milliseconds between two looks while something runs
const COLUMNS = 64;
const ROW = 3; // pixels

/** `node` is a card. */
export class Matrices {
  #app;
  #layer = 0;
  #head = 0;
  #asked = -Infinity;
  #asking = false;
  #told = null;

  constructor(app) {
    this.#app = app;
    this.note = el("p", { class: "soft small" }, "Ask something: the columns come with the tokens.");
    this.canvases = { k: el("canvas", { role: "img" }), v: el("canvas", { role: "img" }) };
    this.under = el("p", { class: "matrix-tokens mono", "aria-hidden": "true" });
    this.pick = el("div", { class: "matrix-pick" });
    this.shown = el("div", { class: "matrix-shown", hidden: true },
      Object.entries(this.canvases).map(([side, canvas]) => el("figure", {}, el("figcaption", {}, side.toUpperCase()), canvas)),
      this.under,
      el("ul", { class: "legend flat" }, [["below", "below 0"], ["above", "above 0"]].map(([kind, text]) =>
        el("li", {}, el("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), text))));
    this.node = el("div", { class: "card matrices" },
      el("div", { class: "head" }, el("h3", {}, "K and V, a column a token"), this.pick), this.note, this.shown);
    theme.addEventListener("change", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.node);
  }

  async update() {
    const { state, api } = this.#app;
    this.#offer(state.model);
    const running = [...state.sequences.values()].some((one) => one.mine && one.state === "running");
    if (!running || this.#asking || performance.now() - this.#asked < EVERY) return;
    this.#asking = true;
    this.#asked = performance.now();
    try {
      const { columns } = await api(`/live/kv?layer=${this.#layer}&head=${this.#head}`);
      if (columns) {
        this.#told = { ...columns, k: numbers(columns.k), v: numbers(columns.v) };
        this.#draw();
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.note.textContent = error.message;
    } finally {
      this.#asking = false;
    }
  }

  #offer(model) {
    if (this.pick.childElementCount) return;
    const numbered = (most) => Array.from({ length: most }, (_, i) => el("option", { value: String(i) }, String(i + 1)));
    const select = (label, most, set) => el("label", { class: "small" }, label, " ",
      el("select", { onchange: (event) => { set(Number(event.target.value)); this.#asked = -Infinity; } }, numbered(most)));
    this.pick.append(select("Layer", model.layers, (layer) => { this.#layer = layer; }),
      model.kv_heads > 1 ? select("KV head", model.kv_heads, (head) => { this.#head = head; }) : "");
  }

  #draw() {
    if (!this.#told) return;
    this.shown.hidden = false;
    const { tokens, dims, start } = this.#told;
    const end = start + tokens.length;
    this.note.textContent = `${sequenceName(this.#told)}: ${plural(end, "column")}${start ? `, the last ${count(tokens.length)} of them` : ""}, ${dims} rows each`;
    for (const [side, canvas] of Object.entries(this.canvases)) {
      canvas.setAttribute("aria-label", `${side.toUpperCase()}: ${dims} rows, ${tokens.length} columns, the last for ${visible(tokens.at(-1) ?? "")}`);
      this.#paint(canvas, this.#told[side]);
    }
    this.under.textContent = `… ${tokens.slice(-12).map(visible).join("")}`;
  }

  /** Above 0 towards the accent, below towards the warm colour; as much of it as the number is large. */
  #paint(canvas, values) {
    const { tokens, dims } = this.#told;
    const width = canvas.parentElement.clientWidth - 28;
    const scale = devicePixelRatio;
    const column = Math.min(Math.floor((width * scale) / COLUMNS), 12 * scale);
    const row = Math.round(ROW * scale);
    Object.assign(canvas, { width: column * COLUMNS, height: row * dims });
    canvas.style.width = `${canvas.width / scale}px`;
    const context = canvas.getContext("2d");
    context.fillStyle = colour("sunken");
    context.fillRect(0, 0, canvas.width, canvas.height);
    const [above, below, zero] = [colour("accent"), colour("warm"), colour("surface")];
    context.fillStyle = zero;
    context.fillRect(0, 0, column * tokens.length, canvas.height);
    for (let x = 0; x < tokens.length; x += 1) {
      for (let y = 0; y < dims; y += 1) {
        const value = values[x * dims + y];
        context.fillStyle = value < 0 ? below : above;
        context.globalAlpha = Math.abs(value) / 127;
        context.fillRect(x * column, y * row, column, row);
      }
    }
    context.globalAlpha = 1;
  }
}

function numbers({ data }) {
  return Int8Array.from(atob(data), (character) => character.charCodeAt(0));
}
