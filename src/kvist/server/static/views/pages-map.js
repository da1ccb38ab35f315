// The map of pages: lays the cells out, draws them on a canvas, and finds the one under the pointer or the arrow keys.

import { el, plural } from "../lib/dom.js";
import { sequenceName } from "../lib/names.js";
import { OWNERS } from "../lib/state.js";
import { colour, isCalm, theme } from "../lib/theme.js";
import { COLOURS, box, drawCell, drawEffect } from "./pages-cell.js";

const TALLEST = 460; // pixels that the cells should fit into, before they have their smallest size
const SIZES = [26, 22, 18, 15, 12, 10, 8, 6, 5, 4, 3]; // of a cell with its gap
const LABEL = 26; // pixels above a band that has a title
const FADE = { hit: 1600, evicted: 1100 }; // milliseconds

/** `node` is the map; `onPick(page or null)` is called with {group, page} of the cell that is looked at. */
export class PageMap {
  group = 0;
  #state;
  #sort = "sequence";
  #bands = [];
  #size = 0;
  #columns = 1;
  #picked = null; // {band, at, page}
  #effects = new Map(); // page -> {kind, start}
  #running = false;

  constructor(state, onPick) {
    this.#state = state;
    this.onPick = onPick;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.labels = el("div", { class: "map-labels" });
    this.empty = el("p", { class: "note" }, "No page was used yet. Ask something, and pages appear here.");
    this.node = el("div", {
      class: "map", tabindex: 0, role: "application", "aria-roledescription": "map of pages",
      "aria-label": "Pages. Arrow keys go from page to page; what is in one is told beside the map.",
      onkeydown: (event) => this.#key(event),
      onpointermove: (event) => this.#point(event),
      onpointerdown: (event) => this.#point(event),
      onfocus: () => { if (!this.#picked) this.#pick(0, 0); },
    }, this.canvas, this.labels, this.empty);
    new ResizeObserver(() => this.update()).observe(this.node);
    theme.addEventListener("change", () => this.#draw());
  }

  sortBy(sort) {
    this.#sort = sort;
    this.update();
  }

  showGroup(group) {
    this.group = group;
    this.#effects.clear();
    this.#picked = null;
    this.onPick(null);
    this.update();
  }

  /** Light pages up, or let them fade. */
  flash(kind, { group, pages }) {
    if (group !== this.group || isCalm()) return;
    for (const page of pages) this.#effects.set(page, { kind, start: performance.now() });
    this.#animate();
  }

  /** Lay out and draw anew. */
  update() {
    const width = this.node.clientWidth;
    if (!width || !this.#state.model) return;
    this.#layOut(width);
    this.#draw();
  }

  #layOut(width) {
    const bands = this.#arranged();
    const cells = bands.reduce((sum, band) => sum + band.pages.length, 0);
    const rows = (size) => bands.reduce((sum, band) => sum + Math.ceil(band.pages.length / Math.floor(width / size)), 0);
    this.#size = SIZES.find((size) => rows(size) * size <= TALLEST) ?? SIZES.at(-1);
    this.#columns = Math.floor(width / this.#size);
    let top = 0;
    for (const band of bands) {
      if (band.title) top += LABEL;
      band.top = top;
      top += Math.ceil(band.pages.length / this.#columns) * this.#size + (band.title ? 10 : 0);
    }
    this.#bands = bands;
    this.empty.hidden = cells > 0;
    this.canvas.hidden = cells === 0;
    this.#resize(width, top);
    this.#label(bands);
    if (this.#picked) this.#follow();
  }

  #resize(width, height) {
    const scale = devicePixelRatio;
    const [wide, tall] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width === wide && this.canvas.height === tall) return;
    Object.assign(this.canvas, { width: wide, height: tall });
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
  }

  #label(bands) {
    const titled = bands.filter((band) => band.title);
    while (this.labels.childElementCount > titled.length) this.labels.lastChild.remove();
    titled.forEach((band, i) => {
      const label = this.labels.children[i] ?? this.labels.appendChild(el("div", {}, el("strong"), el("span")));
      label.style.top = `${band.top - LABEL}px`;
      label.firstChild.textContent = band.title;
      label.lastChild.textContent = band.note;
    });
  }

  /** The pages in bands of {title, note, pages}. */
  #arranged() {
    const { states, stamps, touched } = this.#state.pages[this.group];
    const used = Array.from({ length: touched }, (_, page) => page);
    if (this.#sort === "id") return [{ pages: used }];
    const latest = (a, b) => stamps[b] - stamps[a];
    if (this.#sort === "age") return [{ pages: used.sort(latest) }];
    const bands = [];
    const placed = new Set();
    for (const sequence of this.#state.sequences.values()) {
      const pages = (sequence.pages[this.group] ?? []).filter((page) => page >= 0);
      if (!pages.length) continue;
      pages.forEach((page) => placed.add(page));
      bands.push({ title: sequenceName(sequence), note: extent(sequence), pages, sequence: sequence.id });
    }
    const rest = { cached: [], live: [], free: [] };
    for (const page of used) {
      if (placed.has(page)) continue;
      rest[states[page] & OWNERS ? "live" : states[page] ? "cached" : "free"].push(page);
    }
    const add = (title, pages) => { if (pages.length) bands.push({ title, note: plural(pages.length, "page"), pages }); };
    add("Held, by no sequence that runs", rest.live.sort(latest));
    add("Cached, used last first", rest.cached.sort(latest));
    add("Free again", rest.free);
    return bands;
  }

  // -- drawing ---------------------------------------------------------------------------------------------------

  #draw() {
    const context = this.canvas.getContext("2d");
    const size = this.#size;
    const gap = size > 9 ? 3 : size > 4 ? 1 : 0.5;
    const paint = { side: size - gap, round: size > 9 ? 3 : 0, colours: Object.fromEntries(COLOURS.map((one) => [one, colour(one)])) };
    const fills = this.#fills();
    const { states } = this.#state.pages[this.group];
    const now = performance.now();
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.font = `600 ${Math.max(12, Math.round(size * 0.55))}px system-ui`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const band of this.#bands) {
      band.pages.forEach((page, i) => {
        const x = (i % this.#columns) * size;
        const y = band.top + Math.floor(i / this.#columns) * size;
        drawCell(context, paint, states[page], x, y, fills.get(page));
        const effect = this.#effects.get(page);
        if (effect) drawEffect(context, paint, effect.kind, Math.max(1 - (now - effect.start) / FADE[effect.kind], 0), x, y);
      });
    }
    this.#outline(context, paint);
  }

  /** The cell that is looked at, wherever it is drawn. */
  #outline(context, { side, round, colours }) {
    if (!this.#picked) return;
    for (const band of this.#bands) {
      const at = band.pages.indexOf(this.#picked.page);
      if (at < 0) continue;
      const x = (at % this.#columns) * this.#size;
      const y = band.top + Math.floor(at / this.#columns) * this.#size;
      const left = Math.max(x - 1, 1); // not outside the canvas
      box(context, left, y - 1, x + side + 1 - left, side + 2, round + 1);
      context.lineWidth = 2;
      context.strokeStyle = colours.ink;
      context.stroke();
    }
  }

  /** Of each page that fills how much of it is filled. */
  #fills() {
    const fills = new Map();
    const size = this.#state.model.page_size;
    for (const { pages, slots } of this.#state.sequences.values()) {
      const own = pages[this.group] ?? [];
      for (let i = Math.floor(slots / size); i < own.length; i += 1) {
        fills.set(own[i], Math.max(0, Math.min(1, (slots - i * size) / size)));
      }
    }
    return fills;
  }

  #animate() {
    if (this.#running) return;
    this.#running = true;
    const frame = () => {
      const now = performance.now();
      for (const [page, { kind, start }] of this.#effects) if (now - start > FADE[kind]) this.#effects.delete(page);
      this.#draw();
      this.#running = this.#effects.size > 0;
      if (this.#running) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  // -- looking at one --------------------------------------------------------------------------------------------

  #point(event) {
    const rect = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - rect.left, event.clientY - rect.top];
    const column = Math.floor(x / this.#size);
    const band = this.#bands.findLastIndex((one) => one.top <= y);
    if (band < 0 || column >= this.#columns || x < 0) return;
    const at = Math.floor((y - this.#bands[band].top) / this.#size) * this.#columns + column;
    if (at < this.#bands[band].pages.length) this.#pick(band, at);
  }

  #key(event) {
    if (!this.#picked) return;
    const { band, at } = this.#picked;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns, ArrowDown: this.#columns };
    let [toBand, to] = [band, at + (steps[event.key] ?? 0)];
    if (event.key === "Home") [toBand, to] = [0, 0];
    else if (event.key === "End") [toBand, to] = [this.#bands.length - 1, this.#bands.at(-1).pages.length - 1];
    else if (!steps[event.key]) return;
    event.preventDefault();
    if (to < 0 && toBand > 0) [toBand, to] = [toBand - 1, this.#bands[toBand - 1].pages.length - 1];
    else if (to >= this.#bands[toBand].pages.length && toBand < this.#bands.length - 1) [toBand, to] = [toBand + 1, 0];
    this.#pick(toBand, Math.max(0, Math.min(to, this.#bands[toBand].pages.length - 1)));
  }

  #pick(band, at) {
    const page = this.#bands[band]?.pages[at];
    if (page === undefined || (this.#picked?.page === page && this.#picked.band === band)) return;
    this.#picked = { band, at, page };
    this.onPick({ group: this.group, page });
    this.#draw();
  }

  /** Keep looking at the same page where the layout has moved it. */
  #follow() {
    const { page, band } = this.#picked;
    const places = [band, ...this.#bands.keys()];
    const found = places.find((place) => this.#bands[place]?.pages.includes(page));
    this.#picked = found === undefined ? null : { band: found, at: this.#bands[found].pages.indexOf(page), page };
    if (!this.#picked) this.onPick(null);
  }
}

function extent(sequence) {
  return `${plural(sequence.prompt, "token")} + ${sequence.generated} generated`;
}
