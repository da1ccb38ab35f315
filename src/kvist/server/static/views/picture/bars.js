// The work of each step as bars: growing without the cache, flat with it; counted, and as measured.

import { count, el, seconds } from "../../lib/dom.js";
import { NAMES, SIDES } from "./steps.js";

const MEASURES = {
  counted: { title: "K/V projections of each step", of: (step) => step.projected.length, say: count, unit: "" },
  measured: { title: "Time of each step", of: (step) => step.seconds, say: seconds, unit: "" },
};

/** Two rows of charts, of one scale each: `show(steps, step)`. */
export class Bars {
  constructor() {
    this.charts = Object.entries(MEASURES).map(([name, measure]) => ({ measure, parts: SIDES.map((side) => chart(side, name)) }));
    this.node = el("div", { class: "measures" }, this.charts.map(({ measure, parts }) =>
      el("section", { class: "card" }, el("h3", {}, measure.title), el("div", { class: "pair" }, parts.map((part) => part.node)))));
  }

  show(steps, step) {
    for (const { measure, parts } of this.charts) {
      const values = SIDES.map((side) => steps.sides[side].slice(0, steps.count).map(measure.of));
      const most = Math.max(...values.flat(), 0);
      parts.forEach((part, i) => {
        const shown = values[i].slice(0, step);
        part.show(values[i], most, step, measure.say);
        part.total.textContent = measure.say(shown.reduce((sum, value) => sum + value, 0));
      });
    }
  }
}

function chart(side, name) {
  const bars = el("div", { class: "bars", role: "img" });
  const total = el("strong", { class: "sum", "data-total": `${side}-${name}` }, "0");
  const node = el("div", { class: `bar-chart ${side}` },
    el("p", { class: "bar-head" }, el("span", {}, NAMES[side]), total), bars);
  const show = (values, most, step, say) => {
    bars.replaceChildren(...values.map((value, i) => el("span", {
      class: i + 1 === step ? "now" : i < step ? "past" : "ahead", style: { "--share": most ? value / most : 0 },
    }, values.length <= 16 ? el("small", {}, i < step ? say(value) : "") : null)));
    bars.setAttribute("aria-label", `${NAMES[side]}: ${values.slice(0, step).map(say).join(", ")}`);
  };
  return { node, show, total };
}
