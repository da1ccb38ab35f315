// Chat: conversations with the model, each answer with what the cache did for it. See chat/conversation.js.

import { el, plural } from "../lib/dom.js";
import { Conversation } from "./chat/conversation.js";
import { messageView } from "./chat/message.js";

export const title = "Chat";

const KEPT = "kvist-chats"; // names of this tab's sessions
const IDEAS = ["Why is the sky blue?", "Name three trees, and one thing about each.", "Tell me a story about a twig."];

export function mount(root, app) {
  const chats = [];
  let open = null;
  let views = [];
  let made = 0;

  const tabs = el("div", { class: "chats", role: "tablist", "aria-label": "Conversations" });
  const acts = el("div", { class: "chat-acts" });
  const log = el("div", { class: "log", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "-1" });
  const trouble = el("p", { class: "error", role: "alert" });
  const box = el("textarea", { rows: 1, "aria-label": "Message", placeholder: "Say something" });
  const send = el("button", { type: "submit", class: "button primary" }, "Send");
  const stop = el("button", { type: "button", class: "button", onclick: () => open.stop() }, "Stop");
  const form = el("form", { class: "composer card" }, box, el("div", { class: "composer-acts" },
    el("span", { class: "soft small" }, "Enter sends, Shift+Enter starts a line"), stop, send));
  const panel = el("div", { class: "talk" }, log, trouble, form);
  const settings = settingsCard();
  root.append(
    el("div", { class: "head" }, el("h2", {}, "Chat"), tabs,
      el("button", { type: "button", class: "button", onclick: () => add(fresh(), true) }, "New")),
    el("div", { class: "chat-body" }, panel, el("aside", {}, settings.node, acts)),
  );

  function fresh(from = null) {
    made += 1;
    return new Conversation(app, from ? `${from} · fork` : `Chat ${made}`);
  }

  function add(chat, focus = false) {
    chats.push(chat);
    chat.addEventListener("change", () => {
      remember();
      if (chat === open) draw();
    });
    chat.addEventListener("text", ({ detail }) => {
      const view = views.find((one) => one.message === detail);
      if (view) follow(() => view.grow());
    });
    choose(chat);
    if (focus) box.focus();
  }

  function choose(chat) {
    open = chat;
    views = [];
    log.replaceChildren();
    draw();
  }

  async function remove(chat) {
    chats.splice(chats.indexOf(chat), 1);
    await chat.forget();
    remember();
    if (!chats.length) add(fresh());
    else choose(chats.at(-1));
  }

  async function fork(chat, kept) {
    const other = await chat.fork(kept, `${chat.title} · fork`);
    if (other) add(other, true);
  }

  function remember() {
    sessionStorage.setItem(KEPT, JSON.stringify(chats.filter((chat) => chat.name).map(({ name, title: own }) => [name, own])));
  }

  /** Change the log, and stay at its end if one was there. */
  function follow(change) {
    const page = document.documentElement;
    const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 120;
    change();
    if (atEnd && !root.hidden) page.scrollTop = page.scrollHeight;
  }

  function draw() {
    drawTabs();
    drawActs();
    stop.hidden = !open.busy;
    send.hidden = open.busy;
    trouble.textContent = open.error ?? "";
    trouble.hidden = !open.error;
    log.setAttribute("aria-busy", String(open.busy));
    follow(drawLog);
  }

  function drawLog() {
    const messages = open.messages;
    views = messages.map((message, i) => {
      const view = views[i]?.message === message ? views[i] : null;
      const last = i === messages.length - 1;
      const idle = !open.busy;
      const actions = {
        again: idle && last ? () => open.again(settings.read()) : null,
        fork: idle ? () => fork(open, i + 1) : null,
        back: idle && !last ? () => open.rollBack(i + 1) : null,
      };
      if (view) Object.assign(view.actions, actions);
      const shown = view ?? Object.assign(messageView(message, actions), { actions });
      shown.update();
      return shown;
    });
    if (messages.length) log.replaceChildren(...views.map((view) => view.node));
    else log.replaceChildren(empty());
  }

  function empty() {
    return el("div", { class: "empty" },
      el("p", {}, "Ask something, then ask again: the second answer begins with what the first one left in the cache."),
      el("div", { class: "ideas" }, IDEAS.map((idea) =>
        el("button", { type: "button", class: "button", onclick: () => { box.value = idea; fit(); box.focus(); } }, idea))));
  }

  function drawTabs() {
    tabs.replaceChildren(...chats.map((chat) => el("button", {
      type: "button", role: "tab", "aria-selected": String(chat === open), tabindex: chat === open ? "0" : "-1",
      onclick: () => choose(chat),
    }, chat.title, chat.busy ? el("span", { class: "dot", "aria-label": "answering" }) : null)));
    tabs.hidden = chats.length < 2;
  }

  function drawActs() {
    const idle = !open.busy && open.messages.length > 0;
    const button = (label, act) => el("button", { type: "button", class: "button", disabled: !idle, onclick: act }, label);
    acts.replaceChildren(
      button("Fork", () => fork(open, open.messages.length)),
      button("See its attention", () => app.navigate(`attention/${encodeURIComponent(open.name)}`)),
      button("Delete", () => remove(open)),
    );
  }

  function fit() {
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight + 2, 220)}px`;
  }

  async function submit() {
    const text = box.value;
    if (!text.trim() || open.busy) return;
    const chat = open;
    box.value = "";
    fit();
    const left = await chat.say(text, settings.read());
    if (left && !box.value) {
      box.value = left;
      fit();
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  box.addEventListener("input", fit);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(chats[(chats.indexOf(open) + step + chats.length) % chats.length]);
    tabs.querySelector('[aria-selected="true"]').focus();
  });

  async function resume() {
    for (const [name, own] of JSON.parse(sessionStorage.getItem(KEPT) ?? "[]")) {
      const chat = fresh();
      chat.title = own;
      await chat.resume(name).then(() => add(chat), () => {}); // the server has forgotten it
    }
    if (!chats.length) {
      made = 0;
      add(fresh());
    }
  }

  add(fresh());
  if (sessionStorage.getItem(KEPT)) {
    chats.length = 0;
    made = 0;
    resume();
  }
  return {};
}

/** What answers are made with. `read()` gives it as numbers. */
function settingsCard() {
  const field = (label, input, hint) => el("label", { class: "field" }, el("span", {}, label), input, hint && el("small", {}, hint));
  const number = (value, min, max, step, placeholder) => el("input", { type: "number", value, min, max, step, placeholder });
  const temperature = number("0.7", 0, 2, 0.1);
  const most = number("128", 1, 4096, 1);
  const seed = number("", 0, 2 ** 31, 1, "any");
  const compare = el("input", { type: "checkbox", role: "switch" });
  const node = el("details", { class: "card settings", open: matchMedia("(min-width: 900px)").matches },
    el("summary", {}, "How answers are made"),
    el("label", { class: "switch" }, compare, el("span", {}, "Without the cache beside it")),
    el("p", { class: "soft small" }, `The same answer again, computing all K and V at every step. Up to ${plural(64, "token")}.`),
    field("Temperature", temperature), field("Tokens at most", most), field("Seed", seed, "The same seed gives the same answer."));
  const within = (input, fallback) => {
    const value = input.valueAsNumber;
    return Number.isFinite(value) ? Math.min(Math.max(value, Number(input.min)), Number(input.max)) : fallback;
  };
  const read = () => ({
    temperature: within(temperature, 0), maxTokens: Math.round(within(most, 128)),
    seed: Number.isFinite(seed.valueAsNumber) ? Math.round(within(seed, 0)) : null, compare: compare.checked,
  });
  return { node, read };
}
