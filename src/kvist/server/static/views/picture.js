// The picture: what the cache saves, step by step, in a real answer of the running model, made twice.

import { compare } from "../lib/compare.js";
import { el, plural, seconds } from "../lib/dom.js";
import { isCalm } from "../lib/theme.js";
import { Bars } from "./picture/bars.js";
import { Flat } from "./picture/flat.js";
import { NAMES, SIDES, Steps } from "./picture/steps.js";

export const title = "Picture";

const PROMPT = "John said he was tired";
const PACE = 1150; // milliseconds from step to step
const TURN = 0.12; // radians for a key

export function mount(root, app) {
  let steps = new Steps();
  let step = 0;
  let playing = false;
  let timer = 0;
  let running = null;
  let picture = null;
  let inSight = false;

  const canvas = el("canvas", {
    tabindex: "0", role: "application", "aria-roledescription": "picture",
    "aria-label": "The tokens of both sides. Space plays and pauses, left and right go from step to step, with Shift they turn the picture, and up and down tilt it.",
  });
  const hint = el("p", { class: "stage-hint" }, "Click to pause, drag to turn");
  const heads = SIDES.map((side) => el("p", { class: `side ${side}` }, NAMES[side], el("strong", {}), el("span", {})));
  const stage = el("div", { class: "stage" }, canvas, heads, hint);
  const play = el("button", { type: "button", class: "button", onclick: () => toggle() });
  const scrub = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step" });
  const where = el("output", { class: "where" });
  const says = el("p", { class: "says", role: "status" });
  const trouble = el("p", { class: "error", role: "alert", hidden: true });
  const bars = new Bars();
  const prompt = el("input", { type: "text", value: PROMPT, id: "picture-prompt", maxlength: 200 });
  const more = el("input", { type: "number", value: innerWidth < 640 ? 2 : 4, min: 1, max: 16, id: "picture-more" });
  const run = el("button", { type: "submit", class: "button primary" }, "Run");
  const form = el("form", { class: "run" },
    el("label", { for: "picture-prompt" }, "Prompt"), prompt,
    el("label", { for: "picture-more" }, "New tokens"), more, run);
  root.append(el("div", { class: "head" }, el("h2", {}, "What the cache saves"), form), trouble,
    stage, el("div", { class: "play" }, play, scrub, where), says, bars.node);

  async function prepare() {
    if (picture) return;
    if (hasWebGL()) {
      const { Scene } = await import("./picture/scene.js");
      picture = new Scene(canvas, isCalm());
    } else {
      const flat = el("div", { class: "plain-stage" });
      stage.replaceChildren(flat);
      picture = new Flat(flat);
    }
    look();
  }

  /** Run the answer anew; the picture plays behind the steps that have come. */
  async function begin() {
    running?.abort();
    const own = (running = new AbortController());
    const fresh = new Steps();
    trouble.hidden = true;
    run.disabled = true;
    pause();
    try {
      await answered(fresh, own);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === undefined) throw error;
      trouble.textContent = error.message;
      trouble.hidden = false;
    } finally {
      if (running === own) run.disabled = false;
    }
  }

  async function answered(fresh, own) {
    const body = { prompt: prompt.value, max_tokens: Math.min(Math.max(more.valueAsNumber || 1, 1), 16), ignore_eos: true, singly: true };
    await compare(app, body, own.signal, (event) => {
      if (fresh.take(event) && fresh.count === 1 && steps !== fresh) {
        steps = fresh;
        go(1);
        if (!isCalm()) resume();
      }
      scrub.max = steps.count;
      describe();
    });
    if (isCalm()) go(steps.count);
  }

  function go(to) {
    step = Math.min(Math.max(to, Math.min(1, steps.count)), steps.count);
    scrub.value = step;
    picture?.show(steps, step);
    bars.show(steps, step);
    describe();
  }

  function describe() {
    scrub.max = steps.count;
    where.textContent = step ? `Step ${step} of ${steps.count}` : "";
    if (!step) return;
    const told = (side) => steps.at(side, step);
    const [without, having] = [told("uncached"), told("cached")];
    heads.forEach((head, i) => {
      const [computed, all] = [told(SIDES[i]).projected.length, steps.length(step)];
      head.children[0].textContent = `${computed} computed`;
      head.children[1].textContent = all > computed ? `${all - computed} cached` : "";
    });
    says.textContent =
      `Step ${step}: without the cache K and V of ${plural(without.projected.length, "token")} are computed, ${without.projections_total} so far ` +
      `(${seconds(steps.seconds("uncached", step))}); with it of ${plural(having.projected.length, "token")}, ${having.projections_total} so far ` +
      `(${seconds(steps.seconds("cached", step))}).${steps.equal === true ? " Both chose the same tokens." : ""}`;
  }

  function look() {
    if (steps.count) picture.show(steps, step);
  }

  function resume() {
    if (step >= steps.count && steps.count > 1) go(1);
    playing = true;
    tell();
    clearTimeout(timer);
    timer = setTimeout(tick, PACE);
  }

  function tick() {
    if (!playing || !inSight) return;
    if (step < steps.count) go(step + 1);
    else if (steps.equal !== null) return void pause();
    timer = setTimeout(tick, PACE);
  }

  function pause() {
    playing = false;
    clearTimeout(timer);
    tell();
  }

  function toggle() {
    if (playing) pause();
    else resume();
  }

  function tell() {
    says.setAttribute("aria-live", playing ? "off" : "polite"); // who listens is not told twice a second
    play.textContent = playing ? "Pause" : "Play";
    hint.textContent = playing ? "Click to pause, drag to turn" : "Click to play, drag to turn";
  }

  steer(canvas, { toggle, orbit: (yaw, pitch) => picture?.orbit(yaw, pitch), step: (by) => { pause(); go(step + by); } });
  scrub.addEventListener("input", () => {
    pause();
    go(Number(scrub.value));
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    begin();
  });
  tell();

  return {
    async show() {
      inSight = true;
      await prepare();
      if (!steps.count && !running) await begin();
      else if (playing) resume();
    },
    hide() {
      inSight = false;
    },
  };
}

function hasWebGL() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext(); // there are only so many
  return Boolean(context);
}

/** Pointer and keys on the picture. A click is a drag that did not move. */
function steer(canvas, { toggle, orbit, step }) {
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    drag = { x: event.clientX, y: event.clientY, moved: true };
    orbit(-dx * 0.005, dy * 0.005);
  });
  canvas.addEventListener("pointerup", () => {
    if (drag && !drag.moved) toggle();
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("keydown", (event) => {
    const turns = { ArrowLeft: [-TURN, 0], ArrowRight: [TURN, 0] };
    const tilts = { ArrowUp: [0, TURN], ArrowDown: [0, -TURN] };
    const turn = tilts[event.key] ?? (event.shiftKey ? turns[event.key] : undefined);
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === " ") toggle();
    else if (turn) orbit(...turn);
    else if (by) step(by);
    else return;
    event.preventDefault();
  });
}
