// How one message looks: its text, what it cost, what can be done with it, and the same answer uncached beside it.

import { count, el, percent, plural, seconds, visible } from "../../lib/dom.js";

const WHY = {
  full: "All of the prompt that can be cached was.",
  evicted: "The next page was cached once, and had to make room.",
  "never seen": "No cached page begins like this.",
  salt: "Nothing was cached yet.",
  off: "The cache was not asked.",
};

/**
 * The element of a message, with `grow()` for when it has more text and `update()` for everything else.
 * @param {import("./conversation.js").Message} message
 * @param {{again?: () => void, fork: () => void, back?: () => void}} actions
 */
export function messageView(message, actions) {
  const text = el("p", { class: "said-text" });
  const other = el("p", { class: "said-text" });
  const foot = el("div", { class: "said-foot" });
  const node = el("article", { class: `said said-${message.role}`, "aria-label": message.role === "user" ? "You" : "Answer" });
  const beside = message.uncached && el("div", { class: "beside" },
    el("section", {}, el("h3", {}, "With the cache"), text, el("div", { class: "beside-foot" })),
    el("section", {}, el("h3", {}, "Without"), other, el("div", { class: "beside-foot" })));
  node.append(beside ?? text, foot);

  const grow = () => {
    text.textContent = message.content;
    text.classList.toggle("writing", Boolean(message.busy));
    if (!beside) return;
    other.textContent = message.uncached.text;
    other.classList.toggle("writing", message.uncached.state === "running");
    const [left, right] = beside.querySelectorAll(".beside-foot");
    left.replaceChildren(...cost(message.seconds, message.report?.kv_projections));
    right.replaceChildren(...cost(message.uncached.seconds, message.uncached.projections));
  };
  const update = () => {
    grow();
    foot.replaceChildren(...footer(message, actions));
  };
  update();
  return { node, grow, update, message };
}

function cost(time, projections) {
  if (projections === undefined) return [el("span", {}, "waits")];
  return [
    el("span", {}, el("strong", {}, seconds(time))),
    el("span", {}, el("strong", {}, count(projections)), " K/V projections"),
  ];
}

function footer(message, actions) {
  const parts = [];
  if (message.error) parts.push(el("p", { class: "error", role: "alert" }, message.error));
  if (message.uncached) parts.push(verdict(message));
  if (message.usage && message.report) parts.push(facts(message), why(message.report));
  if (message.reason === "stopped") parts.push(el("p", { class: "soft small" }, "Stopped; what is there is kept."));
  if (!message.busy) {
    const button = (label, act) => act && el("button", { type: "button", class: "quiet", onclick: act }, label);
    const again = message.role === "assistant" ? "Regenerate" : "Answer";
    parts.push(el("div", { class: "acts" },
      button(again, actions.again), button("Fork from here", actions.fork), button("Roll back to here", actions.back)));
  }
  return parts.filter(Boolean);
}

/** Whether both texts are the same. */
function verdict({ content, uncached, seconds: cached }) {
  if (uncached.state === "failed") return el("p", { class: "error", role: "alert" }, `Without the cache: ${uncached.error}`);
  if (uncached.state !== "done") return null;
  const equal = content === uncached.text;
  const times = cached > 0 ? `${(uncached.seconds / cached).toFixed(1)} times the time` : "";
  return el("p", { class: equal ? "verdict equal" : "verdict differs", role: "status" },
    el("span", { class: "sign", "aria-hidden": "true" }, equal ? "✓" : "≠"),
    equal ? `The same text, character by character, at ${times} without the cache.` : "The texts differ.");
}

function facts({ usage, report, speed, reason }) {
  const cached = usage.prompt_tokens_details.cached_tokens;
  const fresh = usage.prompt_tokens - cached;
  const share = usage.prompt_tokens ? cached / usage.prompt_tokens : 0;
  return el("div", { class: "cost" },
    el("span", { class: "share", role: "img", "aria-label": `${percent(share)} of the prompt cached` },
      el("i", { style: { width: percent(share) } })),
    el("span", { class: "cached" }, el("strong", {}, count(cached)), " cached"),
    el("span", { class: "new" }, el("strong", {}, count(fresh)), " new"),
    el("span", {}, "first token ", el("strong", {}, seconds(report.time_to_first_token_seconds))),
    speed ? el("span", {}, el("strong", {}, speed.toFixed(speed < 10 ? 1 : 0)), " tokens/s") : null,
    el("span", {}, plural(usage.completion_tokens, "token"), reason === "length" ? ", cut there" : ""));
}

/** Where the prefix broke. */
function why({ reason, first_difference: difference }) {
  if (!difference) {
    return el("p", { class: "why" }, WHY[reason] ?? "From there on it is new: nothing longer was cached.");
  }
  return el("p", { class: "why" }, `The prefix broke at token ${count(difference.position)}: `,
    el("code", {}, visible(difference.cached_text ?? "")), " is cached, ",
    el("code", {}, visible(difference.asked_text ?? "")), " was asked.");
}
