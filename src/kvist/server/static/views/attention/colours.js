// A scale of colours for weights from 0 to 1: even steps of lightness in OKLCH (Ottosson 2020), so that equal
// differences look equal, whether one sees hues or not. Towards 1 it leaves the background: darker in light, brighter in dark.

const STEPS = 256;
const LIGHT = { from: [0.975, 0.012, 170], to: [0.3, 0.085, 255] };
const DARK = { from: [0.225, 0.02, 175], to: [0.95, 0.11, 100] };

/** OKLCH to sRGB, each 0 to 255. */
function rgb(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((x) => {
    const clipped = Math.min(Math.max(x, 0), 1);
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  });
}

/** The colours from 0 to 1, as CSS. */
export function scale(dark) {
  const { from, to } = dark ? DARK : LIGHT;
  return Array.from({ length: STEPS }, (_, i) => {
    const at = i / (STEPS - 1);
    const middle = 0.06 * Math.sin(Math.PI * at); // more colour in the middle, where there is room for it
    const [lightness, chroma, hue] = from.map((value, part) => value + (to[part] - value) * at);
    return `rgb(${rgb(lightness, chroma + middle, hue).join(" ")})`;
  });
}
