// A tile with a number and its last minute as a small chart.

import { el, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 32;

/**
 * @param {string} label
 * @param {(state: any) => {value: string, note?: string}} tell the number, as text, and what it is out of
 * @param {(point: any) => number | null} pick a point of `rates.history` -> what is drawn
 * @returns {{node: HTMLElement, update: (state: any) => void}}
 */
export function tile(label, tell, pick) {
  const value = el("strong", { class: "tile-value" });
  const note = el("span", { class: "tile-note" });
  const area = svg("path", { class: "spark-area" });
  const line = svg("path", { class: "spark-line" });
  const chart = svg("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    "aria-hidden": "true" }, area, line);
  const node = el("div", { class: "tile card" }, el("span", { class: "tile-label" }, label), value, note, chart);
  return {
    node,
    update(state) {
      const told = tell(state);
      value.textContent = told.value;
      note.textContent = told.note ?? "";
      const path = drawn(state.rates.history, pick);
      line.setAttribute("d", path);
      area.setAttribute("d", path && `${path}V${HEIGHT}H${firstX(path)}Z`);
    },
  };
}

/** The path of a history that ends at the right edge: a point is half a second, the chart a minute. */
function drawn(history, pick) {
  const values = history.map(pick);
  const most = Math.max(...values.filter((value) => value !== null), 0) || 1;
  const start = 120 - history.length;
  const points = values.flatMap((value, i) => {
    if (value === null) return [];
    const x = (((start + i) / 119) * WIDTH).toFixed(1);
    return [`${x} ${(HEIGHT - 2 - (value / most) * (HEIGHT - 6)).toFixed(1)}`];
  });
  return points.length < 2 ? "" : `M${points.join("L")}`;
}

function firstX(path) {
  return path.slice(1, path.indexOf(" "));
}
