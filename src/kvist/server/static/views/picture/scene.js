// The picture in three dimensions: on either side a row of tokens, step behind step. What a step computed stands up and
// glows; what it found in the cache lies flat and dim. So the glowing blocks of a side are its K/V projections.

import * as THREE from "../../vendor/three/three.module.min.js";
import { SIDES } from "./steps.js";

const BLOCK = { wide: 1.5, deep: 0.62, tall: 1.05, flat: 0.2 };
const GAP = 0.12;
const BACK = 1.02; // from a step to the one before
const BESIDE = 1.6; // between the sides
const COLOURS = { uncached: 0xff4b3e, cached: 0x7df0b2, rest: 0x34443f };
const INK = { computed: "#160403", fresh: "#04140c", rest: "#b9c7c1" };
const TEXT = { wide: 512, high: 192, size: 148 }; // of a texture, in pixels
const FADE = 0.35; // seconds of a block's rise
const GLOW = 1.2; // seconds of its glow

/** Draws `show(steps, step)`. Throws where there is no WebGL. */
export class Scene {
  constructor(canvas, calm) {
    this.canvas = canvas;
    this.calm = calm;
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(20, 1, 0.1, 400);
    this.turn = { yaw: 0, pitch: 0.58 };
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
    const ink = kind === "cached" ? INK.rest : side === "uncached" ? INK.computed : INK.fresh;
    const face = this.#text(text, ink);
    face.scale.set(BLOCK.wide, BLOCK.wide * TEXT.high / TEXT.wide, 1);
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
      face.rotation.x = -0.58;
      face.position.set(x, block.tall + 0.3, BLOCK.deep / 2 - 0.1);
    }
    group.add(face);
    block.face = face;
  }

  /** A plane with a text; equal texts share a texture. */
  #text(text, ink) {
    const key = ink + text;
    if (!this.pictures.has(key)) this.pictures.set(key, picture(text, ink));
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
    const depth = (this.step - 1) * BACK + BLOCK.deep;
    const width = Math.max(this.width, 5);
    const apart = depth + 1.9; // of the rows, where the sides are one behind the other
    const across = beside ? 2 * width + BESIDE : width;
    const along = beside ? depth : depth + apart;
    for (const [i, side] of SIDES.entries()) {
      const which = i - 0.5;
      this.groups[side].position.set(beside ? which * (width + BESIDE) : 0, 0, beside ? 0 : (i - 1) * apart);
    }
    const { yaw, pitch } = this.turn;
    const middle = new THREE.Vector3(0, BLOCK.tall / 2, (BLOCK.deep - along) / 2);
    const half = Math.tan((camera.fov * Math.PI) / 360);
    const rise = along * Math.sin(pitch) + BLOCK.tall * Math.cos(pitch) + 1.3;
    const far = Math.max((across + 1.7) / 2 / (half * camera.aspect) + along * 0.45, rise / 2 / half);
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

/** A texture with a text. */
function picture(text, ink) {
  const canvas = new OffscreenCanvas(TEXT.wide, TEXT.high);
  const context = canvas.getContext("2d");
  context.fillStyle = ink;
  context.textAlign = "center";
  context.textBaseline = "middle";
  let size = TEXT.size;
  do context.font = `650 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  while (context.measureText(text).width > TEXT.wide - 24 && (size -= 4) > 40);
  context.fillText(text, TEXT.wide / 2, TEXT.high / 2);
  const texture = new THREE.CanvasTexture(canvas);
  texture.colorSpace = THREE.SRGBColorSpace;
  texture.anisotropy = 8;
  return texture;
}
