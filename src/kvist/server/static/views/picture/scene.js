// The picture in three dimensions: on either side a row of tokens, step behind step. What a step computed stands up and
// glows; what it found in the cache lies flat and dim. So the glowing blocks of a side are its K/V projections.

import * as THREE from "../../vendor/three/three.module.min.js";
import { NAMES, SIDES } from "./steps.js";

const BLOCK = { wide: 1.5, deep: 0.62, tall: 0.92, flat: 0.16 };
const GAP = 0.16;
const BACK = 0.92; // from a step to the one before
const COLOURS = { uncached: 0xff4b3e, cached: 0x7df0b2, rest: 0x34443f };
const INK = { computed: "#160403", fresh: "#04140c", rest: "#b9c7c1" };
const FADE = 0.35; // seconds of a block's rise
const GLOW = 1.2; // seconds of its glow

/** Draws `show(steps, step)`. Throws where there is no WebGL. */
export class Scene {
  constructor(canvas, calm) {
    this.canvas = canvas;
    this.calm = calm;
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(30, 1, 0.1, 200);
    this.turn = { yaw: 0, pitch: 0.62 };
    this.scene.add(new THREE.HemisphereLight(0xffffff, 0x22302b, 1.5));
    const sun = new THREE.DirectionalLight(0xffffff, 1.6);
    sun.position.set(3, 8, 6);
    this.scene.add(sun);
    this.box = new THREE.BoxGeometry(1, 1, 1);
    this.halo = glow();
    this.pictures = new Map(); // textures of texts
    this.groups = {};
    for (const side of SIDES) this.scene.add((this.groups[side] = new THREE.Group()));
    this.blocks = [];
    this.visible = false;
    this.frame = 0;
    new ResizeObserver(() => this.draw()).observe(canvas);
    new IntersectionObserver(([entry]) => { this.visible = entry.isIntersecting; this.draw(); }).observe(canvas);
  }

  /** Show the first `step` steps; the last of them rises if it is the next one. */
  show(steps, step) {
    const next = step === this.step + 1 && steps === this.steps;
    Object.assign(this, { steps, step });
    this.#clear();
    for (const side of SIDES) this.#side(side);
    this.began = next && !this.calm ? performance.now() : -Infinity;
    this.draw();
  }

  /** Turn the camera, in radians. */
  orbit(yaw, pitch) {
    this.turn.yaw = Math.min(Math.max(this.turn.yaw + yaw, -0.7), 0.7);
    this.turn.pitch = Math.min(Math.max(this.turn.pitch + pitch, 0.15), 1.35);
    this.draw();
  }

  /** Draw once, and on while something moves. */
  draw() {
    if (this.frame || !this.visible || !this.steps) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = 0;
      const moving = this.#move((now - this.began) / 1000);
      this.#fit();
      this.renderer.render(this.scene, this.camera);
      if (moving) this.draw();
    });
  }

  #clear() {
    for (const side of SIDES) this.groups[side].clear();
    for (const { material } of this.blocks) material.dispose();
    this.blocks = [];
  }

  #side(side) {
    const group = this.groups[side];
    const longest = Math.max(this.steps.length(this.step), 1);
    this.width = longest * (BLOCK.wide + GAP) - GAP;
    for (let step = 1; step <= this.step; step += 1) {
      const age = this.step - step;
      for (let position = 0; position < this.steps.length(step); position += 1) {
        const kind = this.steps.kind(side, step, position);
        if (age && kind === "cached") continue; // of steps that are over only what they computed stays in sight
        const x = position * (BLOCK.wide + GAP) - this.width / 2 + BLOCK.wide / 2;
        this.#block(group, side, kind, x, -age * BACK, this.steps.tokens[position], age);
      }
    }
    const label = this.#text(NAMES[side], { size: 40, ink: "#e6ecea", width: 720, align: "center" });
    label.position.set(0, 0.02, BLOCK.deep / 2 + 0.62);
    label.scale.set(5.4, 0.48, 1);
    label.rotation.x = -Math.PI / 2 + 0.5;
    group.add(label);
  }

  #block(group, side, kind, x, z, text, age) {
    const lit = kind !== "cached";
    const base = new THREE.Color(lit ? COLOURS[side] : COLOURS.rest);
    const dim = lit ? 1 / (1 + 0.55 * age) : 1;
    const material = new THREE.MeshStandardMaterial({
      color: base, roughness: 0.55, emissive: base, emissiveIntensity: 0, transparent: age > 0, opacity: age ? 0.25 + 0.5 * dim : 1,
    });
    const mesh = new THREE.Mesh(this.box, material);
    const tall = lit ? BLOCK.tall * (age ? 0.82 : 1) : BLOCK.flat;
    mesh.scale.set(BLOCK.wide, tall, BLOCK.deep);
    mesh.position.set(x, tall / 2, z);
    group.add(mesh);
    const block = { mesh, material, tall, lit, rises: lit && !age, rest: lit ? 0.3 * dim : 0, extras: [] };
    if (!age) this.#face(group, block, side, kind, x, text);
    this.blocks.push(block);
  }

  /** The text in front of a block of the last step, and the glow around it. */
  #face(group, block, side, kind, x, text) {
    const said = { again: "computed again", new: "computed", cached: "cached" }[kind];
    const ink = kind === "cached" ? INK.rest : side === "uncached" ? INK.computed : INK.fresh;
    const face = this.#text(text, { under: said, size: 56, ink, width: 300, align: "center" });
    face.scale.set(BLOCK.wide * 0.96, BLOCK.wide * 0.96 * 0.5, 1);
    if (block.lit) {
      face.position.set(x, block.tall / 2, BLOCK.deep / 2 + 0.01);
      const halo = new THREE.Sprite(new THREE.SpriteMaterial({
        map: this.halo, color: COLOURS[side], blending: THREE.AdditiveBlending, depthWrite: false, transparent: true,
      }));
      halo.position.set(x, block.tall / 2, -0.1);
      halo.scale.set(BLOCK.wide * 2.5, BLOCK.wide * 2.2, 1);
      group.add(halo);
      block.extras.push(halo);
    } else {
      face.rotation.x = -Math.PI / 2 + 0.25;
      face.position.set(x, block.tall + 0.12, 0.02);
    }
    group.add(face);
    block.face = face;
  }

  /** A plane with a text; equal texts share a texture. */
  #text(text, { under = "", size, ink, width, align }) {
    const key = JSON.stringify([text, under, size, ink, width]);
    if (!this.pictures.has(key)) this.pictures.set(key, picture(text, under, size, ink, width, align));
    const material = new THREE.MeshBasicMaterial({ map: this.pictures.get(key), transparent: true, depthWrite: false });
    const plane = new THREE.Mesh((this.plane ??= new THREE.PlaneGeometry(1, 1)), material);
    this.blocks.push({ material });
    return plane;
  }

  /** Where everything is so many seconds after the last step began; whether it still moves. */
  #move(time) {
    for (const block of this.blocks) {
      if (!block.mesh) continue;
      const rise = block.rises ? ease(Math.min(time / FADE, 1)) : 1;
      const tall = BLOCK.flat + (block.tall - BLOCK.flat) * rise;
      block.mesh.scale.y = tall;
      block.mesh.position.y = tall / 2;
      const glowing = block.rises ? 0.35 + 0.65 * Math.max(0, 1 - time / GLOW) : 0;
      block.material.emissiveIntensity = block.rest + 0.45 * glowing;
      if (block.face && block.lit) block.face.position.y = tall / 2;
      for (const halo of block.extras) halo.material.opacity = 0.75 * glowing * rise;
    }
    return time < GLOW;
  }

  /** Both sides in sight: next to each other, or one behind the other where it is narrow. */
  #fit() {
    const { clientWidth: wide, clientHeight: high } = this.canvas;
    const ratio = Math.min(devicePixelRatio, 2);
    if (this.canvas.width !== Math.round(wide * ratio) || this.canvas.height !== Math.round(high * ratio)) {
      this.renderer.setPixelRatio(ratio);
      this.renderer.setSize(wide, high, false);
    }
    const camera = this.camera;
    camera.aspect = wide / Math.max(high, 1);
    const beside = camera.aspect > 1.3;
    const depth = Math.min(this.step, 8) * BACK;
    const width = Math.max(this.width, 5.4);
    const across = beside ? 2 * width + 2 : width;
    const along = beside ? depth : 2 * depth + 3.4;
    this.groups.uncached.position.set(beside ? -(width + 2) / 2 : 0, 0, beside ? 0 : -depth - 3.4);
    this.groups.cached.position.set(beside ? (width + 2) / 2 : 0, 0, 0);
    const middle = new THREE.Vector3(0, 0.2, beside ? -depth * 0.28 : -along / 2 + 0.6);
    const half = Math.tan((camera.fov * Math.PI) / 360);
    const far = Math.max((across / 2 + 1.0) / (half * camera.aspect), (along * Math.sin(this.turn.pitch) + 2.6) / 2 / half) + along / 2;
    const { yaw, pitch } = this.turn;
    camera.position.set(
      middle.x + far * Math.sin(yaw) * Math.cos(pitch), middle.y + far * Math.sin(pitch), middle.z + far * Math.cos(yaw) * Math.cos(pitch));
    camera.lookAt(middle);
    camera.updateProjectionMatrix();
  }
}

function ease(x) {
  return 1 - (1 - x) ** 3;
}

/** A soft round light. */
function glow() {
  const canvas = new OffscreenCanvas(128, 128);
  const context = canvas.getContext("2d");
  const light = context.createRadialGradient(64, 64, 0, 64, 64, 64);
  light.addColorStop(0, "rgba(255,255,255,.55)");
  light.addColorStop(0.5, "rgba(255,255,255,.14)");
  light.addColorStop(1, "rgba(255,255,255,0)");
  context.fillStyle = light;
  context.fillRect(0, 0, 128, 128);
  return new THREE.CanvasTexture(canvas);
}

/** A texture with a text, and a smaller one under it. */
function picture(text, under, size, ink, width, align) {
  const height = under ? width / 2 : size * 1.6;
  const canvas = new OffscreenCanvas(width * 2, height * 2);
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = ink;
  context.textAlign = align;
  context.textBaseline = "middle";
  let own = size;
  do context.font = `600 ${own}px system-ui, "DejaVu Sans", sans-serif`;
  while (context.measureText(text).width > width - 12 && (own -= 2) > 18);
  context.fillText(text, width / 2, under ? height * 0.4 : height / 2);
  if (under) {
    context.font = '500 30px system-ui, "DejaVu Sans", sans-serif';
    context.globalAlpha = 0.85;
    context.fillText(under, width / 2, height * 0.78);
  }
  const texture = new THREE.CanvasTexture(canvas);
  texture.colorSpace = THREE.SRGBColorSpace;
  texture.anisotropy = 4;
  return texture;
}
