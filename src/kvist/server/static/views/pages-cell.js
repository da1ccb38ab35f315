// How one page is drawn, by its byte (see lib/state.js), and what happens to it for a moment.

import { OWNERS, SEALED } from "../lib/state.js";

/** What of the scheme's colours is needed. */
export const COLOURS = ["free", "cached", "live", "shared", "on-shared", "warm", "ink", "surface"];

/** A path around a cell, with round corners where there is room for them. */
export function box(context, x, y, width, height, round) {
  context.beginPath();
  if (round && height > 2 * round) context.roundRect(x, y, width, height, round);
  else context.rect(x, y, width, height);
}

/**
 * Draw a page.
 * @param {{side: number, round: number, colours: Record<string, string>}} paint
 * @param {number | undefined} fill which part of it is filled, if it is filling
 */
export function drawCell(context, { side, round, colours }, byte, x, y, fill) {
  const owners = byte & OWNERS;
  const kind = owners > 1 ? "shared" : owners ? "live" : byte ? "cached" : "free";
  const filling = owners > 0 && byte < SEALED && fill !== undefined;
  box(context, x, y, side, side, round);
  context.fillStyle = colours[kind];
  if (filling) { // from below, in a frame
    context.save();
    context.clip();
    const height = Math.max(side * fill, side > 9 ? 1 : 0);
    context.fillRect(x, y + side - height, side, height);
    context.restore();
    box(context, x + 0.5, y + 0.5, side - 1, side - 1, round);
    context.strokeStyle = colours[kind];
    context.lineWidth = 1;
    context.stroke();
  } else context.fill();
  if (owners > 1 && side >= 15) {
    context.fillStyle = filling && fill < 0.6 ? colours.ink : colours["on-shared"];
    context.fillText(owners > 99 ? "99" : owners, x + side / 2, y + side / 2 + 0.5);
  }
}

/** A hit is a warm frame that fades; what was evicted keeps the colour it had for a moment. */
export function drawEffect(context, { side, round, colours }, kind, strength, x, y) {
  context.globalAlpha = strength;
  if (kind === "evicted") {
    box(context, x, y, side, side, round);
    context.fillStyle = colours.cached;
    context.fill();
  }
  const wide = side > 9 ? 3 : 2;
  box(context, x + wide / 2 - 1, y + wide / 2 - 1, side - wide + 2, side - wide + 2, round);
  context.lineWidth = wide;
  context.strokeStyle = colours.warm;
  context.stroke();
  context.globalAlpha = 1;
}
