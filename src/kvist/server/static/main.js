// The shell: tabs by location.hash, the header with model, state and memory, and the views, loaded when first shown.

import { ApiError, api, stream } from "./lib/api.js";
import { bytes, el, svg } from "./lib/dom.js";
import { LiveState } from "./lib/state.js";
import { isDark, switchScheme, theme } from "./lib/theme.js";

/** Name, title, and an icon (paths in a square of 24). A view is views/NAME.js and views/NAME.css. */
const VIEWS = [
  ["pages", "Pages", "M4 4h6v6H4zM14 4h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z"],
  ["tree", "Tree", "M12 21V10M12 14c0-4-5-3-6-7M12 10c0-3 4-3 6-6M6 7V5M12 10V7"],
  ["chat", "Chat", "M4 5h16v11H11l-5 4v-4H4z"],
  ["picture", "Picture", "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9"],
  ["attention", "Attention", "M4 4v16h16M8 16h0M8 12v4h4v-4zM12 8v4M8 8v4"],
  ["memory", "Memory", "M4 19V9M9.3 19V5M14.6 19v-7M20 19V7"],
];

const main = document.getElementById("main");
const tabs = document.getElementById("tabs");
const shown = new Map(); // name -> {tab, panel, view}
const state = new LiveState();
export const app = { api, stream, state, navigate: (hash) => { location.hash = hash; } };
let current = null;

function build() {
  for (const [name, title, icon] of VIEWS) {
    const tab = el("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, onclick: () => app.navigate(name),
    }, svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: icon })), el("span", {}, title));
    const panel = el("section", {
      role: "tabpanel", id: `view-${name}`, class: `view view-${name}`, "aria-labelledby": `tab-${name}`, hidden: true,
    });
    tabs.append(tab);
    main.append(panel);
    shown.set(name, { tab, panel, view: null, title });
  }
  tabs.addEventListener("keydown", rove);
}

/** Arrow keys, Home and End move between the tabs. */
function rove(event) {
  const names = VIEWS.map(([name]) => name);
  const at = names.indexOf(event.target.closest("[role=tab]").id.slice(4)); // the address follows a moment later
  const to = {
    ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: names.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const name = names[(to + names.length) % names.length];
  app.navigate(name);
  shown.get(name).tab.focus();
}

/** Show what the address says: #NAME, or #NAME/MORE, where the view is told MORE. */
async function route() {
  const [asked, ...more] = decodeURIComponent(location.hash.slice(1)).split("/");
  const name = shown.has(asked) ? asked : VIEWS[0][0];
  if (name !== current) {
    if (current) shown.get(current).view?.hide?.();
    current = name;
    for (const [own, { tab, panel }] of shown) {
      tab.setAttribute("aria-selected", String(own === name));
      tab.tabIndex = own === name ? 0 : -1;
      panel.hidden = own !== name;
    }
  }
  const entry = shown.get(name);
  document.title = `${entry.title} · kvist`;
  entry.loading ??= load(name, entry);
  await entry.loading;
  if (current === name) entry.view?.show?.(more.join("/"));
}

/** Resolves when a view's styles are there. */
function styled(name) {
  return new Promise((resolve, reject) => {
    document.head.append(el("link", { rel: "stylesheet", href: `/static/views/${name}.css`, onload: resolve, onerror: reject }));
  });
}

async function load(name, entry) {
  try {
    const [module] = await Promise.all([import(`./views/${name}.js`), styled(name)]);
    entry.view = module.mount(entry.panel, app);
  } catch (error) {
    console.error(error);
    entry.panel.replaceChildren(el("p", { class: "note", role: "alert" }, "This view could not be loaded."));
  }
}

function header() {
  const model = document.getElementById("model");
  const status = document.getElementById("status");
  const meter = document.getElementById("meter");
  const bar = el("div", { class: "bar", "aria-hidden": "true" },
    el("i", { class: "bar-live" }), el("i", { class: "bar-cached" }));
  const text = el("span", { class: "meter-text" });
  meter.append(bar, text);
  state.addEventListener("change", () => {
    model.textContent = state.model?.name ?? "";
    status.textContent = state.status;
    status.dataset.kind = state.connected ? "good" : "wait";
    const { total, live, cached } = state.memory;
    meter.hidden = !total;
    bar.style.setProperty("--live", total ? live / total : 0);
    bar.style.setProperty("--cached", total ? cached / total : 0);
    text.textContent = `${bytes(live)} live, ${bytes(cached)} cached of ${bytes(total)}`;
  });
}

function schemeSwitch() {
  const button = document.getElementById("scheme");
  const sun = "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5";
  const moon = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z";
  const draw = () => {
    button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
    button.title = button.getAttribute("aria-label");
    button.replaceChildren(svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" },
      svg("path", { d: isDark() ? sun : moon })));
  };
  button.addEventListener("click", switchScheme);
  theme.addEventListener("change", draw);
  draw();
}

build();
header();
schemeSwitch();
addEventListener("hashchange", route);
route();
state.start(stream, ApiError);
