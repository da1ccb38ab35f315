// Light and dark: the switch, and the scheme's colours for those who draw on a canvas.

const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const probe = document.createElement("span");
let known = new Map();

/** Dispatches "change" when the scheme changes: read the colours again then. */
export const theme = new EventTarget();

/** Whether things are dark now. */
export function isDark() {
  return root.dataset.scheme ? root.dataset.scheme === "dark" : system.matches;
}

/** A colour of style.css as the browser computed it: colour("accent") -> "rgb(11, 117, 97)". */
export function colour(name) {
  if (!known.has(name)) {
    if (!probe.isConnected) {
      probe.hidden = true;
      document.body.append(probe);
    }
    probe.style.color = `var(--${name})`;
    known.set(name, getComputedStyle(probe).color);
  }
  return known.get(name);
}

/** Whether movement should be left out. */
export function isCalm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

function changed() {
  known = new Map();
  theme.dispatchEvent(new Event("change"));
}

/** Choose the other scheme, and remember it. */
export function switchScheme() {
  root.dataset.scheme = isDark() ? "light" : "dark";
  localStorage.setItem("kvist-scheme", root.dataset.scheme);
  changed();
}

system.addEventListener("change", changed);
