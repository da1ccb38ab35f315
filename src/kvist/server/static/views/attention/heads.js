// Which query heads read which K/V heads: the model as it is, and as it would be with the other kinds; and the bytes.

import { bytes, count, el, svg } from "../../lib/dom.js";

const NAMES = { MHA: "multi-head", GQA: "grouped-query", MQA: "multi-query" };
const WIDE = 300; // of a drawing, in its own units
const TOP = 14;
const BOTTOM = 74;

/**
 * A card for each kind.
 * @param {{kind: string, bytes: number, own: boolean, reads: number[]}[]} variants
 * @param {(head: number) => void} onHead a query head of the model was chosen
 */
export function headCards(variants, onHead) {
  const most = Math.max(...variants.map((variant) => variant.bytes));
  const own = variants.findLast((variant) => variant.own);
  const drawings = [];
  const cards = variants.map((variant) => {
    const shown = drawing(variant, variant === own ? onHead : null);
    if (variant === own) drawings.push(shown);
    return el("section", { class: variant === own ? "kind own" : "kind" },
      el("h3", {}, variant.kind, el("span", {}, NAMES[variant.kind]),
        variant === own ? el("em", {}, "this model") : null),
      shown.node,
      el("p", { class: "bytes" }, el("strong", {}, bytes(variant.bytes)), " a token ",
        el("span", { class: "soft" }, `${count(variant.bytes)} bytes`)),
      el("span", { class: "bytes-bar", "aria-hidden": "true" },
        el("i", { style: { width: `${(100 * variant.bytes) / most}%` } })));
  });
  return { node: el("div", { class: "kinds" }, cards), mark: (head) => drawings.forEach((one) => one.mark(head)) };
}

function drawing({ kind, reads }, onHead) {
  const kvHeads = Math.max(...reads) + 1;
  const place = (i, of) => (WIDE * (i + 0.5)) / of;
  const radius = Math.min(9, WIDE / reads.length / 2.6);
  const lines = reads.map((kv, i) =>
    svg("line", { x1: place(i, reads.length), y1: TOP + radius, x2: place(kv, kvHeads), y2: BOTTOM - 8 }));
  const heads = reads.map((_, i) => svg("circle", { cx: place(i, reads.length), cy: TOP, r: radius, class: "query" },
    svg("title", {}, `query head ${i}`)));
  const stores = Array.from({ length: kvHeads }, (_, i) => {
    const half = Math.min(12, WIDE / kvHeads / 2.6);
    return svg("rect", { x: place(i, kvHeads) - half, y: BOTTOM - 8, width: 2 * half, height: 16, rx: 3, class: "store" },
      svg("title", {}, `K/V head ${i}`));
  });
  if (onHead) heads.forEach((head, i) => head.addEventListener("click", () => onHead(i)));
  const node = svg("svg", {
    viewBox: `0 0 ${WIDE} ${BOTTOM + 12}`, role: "img", class: onHead ? "drawing choosing" : "drawing",
    "aria-label": `${kind}: ${reads.length} query heads read ${kvHeads} K/V heads, ${reads.length / kvHeads} each`,
  }, lines, stores, heads);
  const mark = (chosen) => {
    heads.forEach((head, i) => head.classList.toggle("lit", i === chosen));
    lines.forEach((line, i) => line.classList.toggle("lit", i === chosen));
    stores.forEach((store, i) => store.classList.toggle("lit", i === reads[chosen]));
  };
  return { node, mark };
}
