// Making elements, and numbers as people read them. Text goes in as text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

/**
 * An element: el("button", {class: "primary", onclick: f, style: {"--share": 0.5}}, "text", child, [children]).
 * @param {string} tag
 * @param {Record<string, any>} [attributes] on... are listeners; undefined, null and false are left out
 */
export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

let groups = 0;

/**
 * One of several, as a row of segments (radio buttons underneath).
 * @param {string} label what is chosen; for screen readers
 * @param {[string, string][]} options pairs of value and text
 * @param {(value: string) => void} onChange
 */
export function choice(label, options, value, onChange) {
  const name = `choice-${++groups}`;
  const parts = options.map(([own, text]) =>
    el("label", {},
      el("input", { type: "radio", name, value: own, checked: own === value, onchange: () => onChange(own) }),
      el("span", {}, text)));
  return el("fieldset", { class: "choice" }, el("legend", { class: "hidden" }, label), parts);
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 1536 -> "1.5 KiB". */
export function bytes(number) {
  let unit = 0;
  let size = number;
  while (size >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${UNITS[unit]}`;
}

/** 12345 -> "12,345". */
export function count(number) {
  return Math.round(number).toLocaleString("en");
}

/** 0.0213 -> "21 ms"; 2.345 -> "2.3 s". */
export function seconds(number) {
  if (number === null || number === undefined) return "–";
  if (number < 0.01) return `${(number * 1000).toFixed(1)} ms`;
  return number < 1 ? `${Math.round(number * 1000)} ms` : `${number.toFixed(1)} s`;
}

/** 0.1234 -> "12.3%". */
export function percent(share) {
  return `${(share * 100).toFixed(1)}%`;
}

/** "1 page", "2 pages". */
export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

/** A token's text so that one sees its spaces and line ends. */
export function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "·");
}
