// What both pictures are drawn from: the steps of a real comparison, as /live/compare tells them.

/**
 * @typedef {object} Step a step of one side
 * @property {number[]} projected positions whose K and V were computed in it
 * @property {number} projections_total
 * @property {number} seconds
 */

export const SIDES = ["uncached", "cached"];
export const NAMES = { uncached: "Without the cache", cached: "With the cache" };

/** Tokens in order, and for each side its steps; grows while events come. */
export class Steps {
  tokens = [];
  prompt = 0; // tokens of the prompt
  sides = { uncached: [], cached: [] };
  equal = null;

  /** Take an event; whether something is there to draw that was not. */
  take(event) {
    if (event.event === "begin") {
      this.tokens = event.prompt.map((token) => token.text);
      this.prompt = this.tokens.length;
    } else if (event.event === "step") {
      this.sides[event.mode].push(event);
      if (event.token_id !== null && this.tokens[event.position + 1] === undefined) this.tokens[event.position + 1] = event.token;
    } else if (event.event === "end") {
      this.equal = event.equal;
    }
    return event.event === "step";
  }

  /** Steps that both sides have. */
  get count() {
    return Math.min(this.sides.uncached.length, this.sides.cached.length);
  }

  /** Positions that are there after step `step` (from 1), the one it reads included. */
  length(step) {
    return step ? this.sides.uncached[step - 1].position + 1 : 0;
  }

  /** @returns {Step} of step `step`, from 1 */
  at(side, step) {
    return this.sides[side][step - 1];
  }

  /** Seconds of the first `step` steps. */
  seconds(side, step) {
    return this.sides[side].slice(0, step).reduce((sum, one) => sum + one.seconds, 0);
  }

  /** "new", "cached" or "computed again": what happened to a position in a step. */
  kind(side, step, position) {
    if (!this.at(side, step).projected.includes(position)) return "cached";
    const before = step > 1 && position < this.length(step - 1);
    return before ? "again" : "new";
  }
}
