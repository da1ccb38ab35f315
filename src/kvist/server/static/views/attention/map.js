// The heat map on a canvas: a row for each token that looks, a column for each that is looked at, sums beside the rows.

import { el, visible } from "../../lib/dom.js";
import { colour, isDark, theme } from "../../lib/theme.js";
import { scale } from "./colours.js";

const CELL = [18, 56]; // smallest and largest, in CSS pixels
const FONT = 12;
const BAR = 30; // length of a sum's bar; none where it is narrow
const NARROW = 440;
const LABEL = 132; // at most

/** Shows `data` of /live/attention. `onPick(row, column)` is told where one points; null where nowhere. */
export class HeatMap {
  data = null;
  at = null; // {row, column}
  root = true; // colours by the square root of weights

  constructor(onPick) {
    this.onPick = onPick;
    this.canvas = el("canvas", { tabindex: "0", role: "application", "aria-roledescription": "heat map" });
    this.node = el("div", { class: "scroll heat" }, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => this.#pick(null));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("focus", () => { if (!this.at && this.data) this.#pick(this.#last()); });
    theme.addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  show(data) {
    this.data = data;
    if (this.at && this.at.row >= data.weights.length) this.at = null;
    this.canvas.setAttribute("aria-label",
      `Attention of layer ${data.layer}, head ${data.head}: ${data.tokens.length} tokens. Arrow keys move from cell to cell.`);
    this.draw();
    this.onPick(this.at);
  }

  /** Where a weight lies in the scale. */
  level(weight) {
    return this.root ? Math.sqrt(weight) : weight;
  }

  draw() {
    if (!this.data || !this.node.clientWidth) return;
    const { tokens, weights, row_sums: sums } = this.data;
    const context = this.canvas.getContext("2d");
    this.#measure(context, tokens);
    const { left, cell, size, width, height } = this.layout;
    const ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    context.scale(ratio, ratio);
    const colours = scale(isDark());
    const gap = cell > 24 ? 2 : 1;
    weights.forEach((row, i) => row.forEach((weight, j) => {
      context.fillStyle = colours[Math.round(this.level(Math.min(weight, 1)) * (colours.length - 1))];
      context.fillRect(left + j * cell, i * cell, cell - gap, cell - gap);
    }));
    this.#labels(context, tokens);
    this.#sums(context, sums, left + size + 14);
    if (this.at) this.#mark(context, gap);
  }

  #measure(context, tokens) {
    context.font = this.#font();
    const longest = Math.max(...tokens.map((token) => context.measureText(this.#name(token)).width));
    const label = Math.min(Math.ceil(longest), LABEL);
    const left = label + 10;
    const bar = this.node.clientWidth < NARROW ? 0 : BAR;
    const sums = bar + 66;
    const room = this.node.clientWidth - left - sums;
    const cell = Math.min(Math.max(Math.floor(room / tokens.length), CELL[0]), CELL[1]);
    const size = cell * tokens.length;
    this.layout = { left, label, cell, size, bar, width: left + size + sums, height: size + Math.max(label, 20) + 12 };
  }

  #font(weight = 400) {
    return `${weight} ${FONT}px ${getComputedStyle(document.documentElement).fontFamily}`;
  }

  #name(token) {
    return visible(token) || "·";
  }

  #fit(context, token) {
    let name = this.#name(token);
    while (context.measureText(name).width > this.layout.label && name.length > 1) name = `${name.slice(0, -2)}…`;
    return name;
  }

  #labels(context, tokens) {
    const { left, cell, size } = this.layout;
    context.textBaseline = "middle";
    tokens.forEach((token, i) => {
      const lit = this.at && (this.at.row === i || this.at.column === i);
      context.font = this.#font(lit ? 600 : 400);
      context.fillStyle = colour(lit ? "ink" : "soft");
      const name = this.#fit(context, token);
      context.textAlign = "right";
      context.fillText(name, left - 8, i * cell + cell / 2);
      context.save();
      context.translate(left + i * cell + cell / 2, size + 8);
      context.rotate(-Math.PI / 2);
      context.fillText(name, 0, 0);
      context.restore();
    });
  }

  #sums(context, sums, x) {
    const { cell, size, bar } = this.layout;
    const text = x + (bar && bar + 6);
    context.textAlign = "left";
    sums.forEach((sum, i) => {
      const y = i * cell + cell / 2;
      context.fillStyle = colour("line");
      context.fillRect(x, y - 3, bar, 6);
      context.fillStyle = colour("accent");
      context.fillRect(x, y - 3, bar * Math.min(sum, 1), 6);
      const lit = this.at?.row === i;
      context.font = this.#font(lit ? 600 : 400);
      context.fillStyle = colour(lit ? "ink" : "soft");
      context.fillText(sum.toFixed(3), text, y);
    });
    context.font = this.#font();
    context.fillStyle = colour("soft");
    context.fillText("sum", text, size + 14);
  }

  #mark(context, gap) {
    const { left, cell } = this.layout;
    const { row, column } = this.at;
    context.strokeStyle = colour("warm");
    context.lineWidth = 2;
    context.strokeRect(left + column * cell - 1, row * cell - 1 + (row ? 0 : 2), cell - gap + 2, cell - gap + 2);
  }

  #point(event) {
    if (!this.data) return;
    const { left, cell } = this.layout;
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / cell);
    const column = Math.floor((event.clientX - box.left - left) / cell);
    this.#pick(row >= 0 && row < this.data.weights.length && column >= 0 && column <= row ? { row, column } : null);
  }

  #last() {
    return { row: this.data.weights.length - 1, column: 0 };
  }

  #key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e3], End: [0, 1e3] };
    const step = steps[event.key];
    if (!step || !this.data) return;
    event.preventDefault();
    const { row, column } = this.at ?? this.#last();
    const to = Math.min(Math.max(row + step[0], 0), this.data.weights.length - 1);
    this.#pick({ row: to, column: Math.min(Math.max(column + step[1], 0), to) });
    const { left, cell } = this.layout;
    this.node.scrollLeft = Math.max(0, left + this.at.column * cell - this.node.clientWidth / 2);
  }

  #pick(at) {
    if (at?.row === this.at?.row && at?.column === this.at?.column) return;
    this.at = at;
    this.draw();
    this.onPick(at);
  }
}
