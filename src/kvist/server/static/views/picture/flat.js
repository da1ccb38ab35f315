// The picture without WebGL: the same blocks as a plain table of steps.

import { el, visible } from "../../lib/dom.js";
import { NAMES, SIDES } from "./steps.js";

const SAID = { again: "computed again", new: "computed", cached: "cached" };

/** The same interface as `Scene`. */
export class Flat {
  constructor(node) {
    this.node = node;
  }

  show(steps, step) {
    this.node.replaceChildren(...SIDES.map((side) => el("section", {},
      el("h3", {}, NAMES[side]),
      el("ol", { class: `blocks ${side}` }, Array.from({ length: steps.length(step) }, (_, position) => {
        const kind = steps.kind(side, step, position);
        return el("li", { class: kind === "cached" ? "rest" : "lit" },
          el("span", {}, visible(steps.tokens[position])), el("small", {}, SAID[kind]));
      })))));
  }

  orbit() {}

  draw() {}
}
