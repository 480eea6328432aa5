/** One of the two drawings: a picture or a clip that grows, its figures, a bar for every step, and the drafts of one. */

import { drawFrames } from "./core/pixels.js";
import { play } from "./player.js";
import { drawTree } from "./tree.js";

const ZOOM = 10; // of a picture; several frames share the width
const GAP = 2; // canvas pixels between frames

export class Panel {
  /**
   * @param {HTMLElement} section an empty section, filled from the page's template
   * @param manifest a bundle's manifest with a pixel graph and a grid
   * @param pixels a session of its pixel graph
   */
  constructor(section, manifest, pixels) {
    const { height, width, frames } = manifest.pixel_graph, { grid } = manifest;
    section.replaceChildren(document.querySelector("#panel").content.cloneNode(true));
    this.find = (selector) => section.querySelector(selector);
    this.find(".title").id = `${section.id}-title`;
    this.manifest = manifest;
    this.pixels = pixels;
    this.canvas = this.find("canvas");
    // A clip's frames of tokens lie side by side, in as many columns as rows or one more.
    this.frames = grid.frames || 1;
    this.across = Math.ceil(Math.sqrt(this.frames));
    const zoom = Math.ceil(ZOOM / this.across);
    this.wide = width * zoom;
    this.tall = height * zoom;
    this.canvas.width = this.across * (this.wide + GAP) - GAP;
    this.canvas.height = Math.ceil(this.frames / this.across) * (this.tall + GAP) - GAP;
    this.clip = this.find(".clip");
    this.clip.hidden = !frames;
    [this.clip.width, this.clip.height] = [width, height];
    this.bars = this.find(".bars");
    this.section = section;
  }

  /** Begin a picture or a clip. */
  clear(method, prompt, window, branches) {
    Object.assign(this, { method, prompt, window, branches, steps: [], milliseconds: 0, bytes: 0, best: null });
    this.find(".drafts").hidden = !branches;
    this.#drawTree({ path: 0, parents: [], walked: [] }, "Drafts of a step");
    this.find(".title").textContent = method;
    this.find("progress").setAttribute("aria-label", `${method}: part of the picture that is final`);
    for (const name of ["rate", "time", "bytes"]) this.find(`.${name}`).textContent = "–";
    for (const name of ["steps", "count"]) this.find(`.${name}`).textContent = "0";
    this.find("progress").value = 0;
    this.clip.width = this.clip.width; // which empties it
    this.#paint([], []);
    this.#drawBars();
    this.#describe(0);
  }

  /** Show what a forward pass left behind. */
  async show({ tokens, drafts, committed, nfe, milliseconds, bytes, tree, finished }) {
    this.steps.push(committed);
    this.milliseconds += milliseconds;
    this.bytes += bytes.in + bytes.out;
    this.find(".steps").textContent = nfe;
    this.find(".count").textContent = tokens.length;
    this.find(".rate").textContent = (tokens.length / nfe).toFixed(2);
    this.find(".time").textContent = `${(this.milliseconds / nfe).toFixed(1)} ms`;
    this.find(".bytes").textContent = `${(this.bytes / nfe / 1000).toFixed(1)} kB`;
    this.find("progress").value = tokens.length / this.manifest.length;
    this.#drawBars();
    this.#describe(tokens.length);
    if (this.branches) this.#showTree(tree, nfe, finished);
    const { steps } = this, images = await this.#paint(tokens, drafts);
    if (finished && images.length > 1) play(images, (image) => this.#showFrame(image), () => steps === this.steps);
  }

  #showFrame(image) {
    this.clip.getContext("2d").drawImage(image, 0, 0);
  }

  /** Show the drafts of a step; at the end, when there is time to look, those of the step to which branches gave most. */
  #showTree(tree, step, finished) {
    const inBranches = tree.walked.filter((draft) => draft >= tree.path).length;
    if (inBranches > (this.best?.inBranches ?? -1)) this.best = { tree, step, inBranches };
    const shown = finished ? this.best : { tree, step, inBranches };
    const held = `${shown.tree.walked.length} held, ${shown.inBranches} of them in branches`;
    this.#drawTree(shown.tree, `Drafts of step ${shown.step}${finished ? ", where branches gave most" : ""}: ${held}`);
  }

  #drawTree(tree, title) {
    const canvas = this.find(".tree"), scale = this.#fit(canvas), context = canvas.getContext("2d");
    const colours = { quiet: this.#colour("--quiet"), accent: this.#colour("--accent") };
    this.find(".drafts h3").textContent = title;
    canvas.setAttribute("aria-label", title);
    drawTree(context, canvas, tree, this.window - this.branches + 1, colours, scale);
  }

  /** Give a canvas as many pixels as the display has for it; returns how many there are to one of the page's. */
  #fit(canvas) {
    const scale = globalThis.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    return scale;
  }

  #describe(count) {
    this.canvas.setAttribute("aria-label", `${this.prompt} by ${this.method}, ${count} of ${this.manifest.length} tokens`);
    this.clip.setAttribute("aria-label", `The clip by ${this.method}`);
    const most = Math.max(0, ...this.steps);
    this.bars.setAttribute("aria-label", `${this.steps.length} steps, at most ${most} tokens in one`);
  }

  #colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name);
  }

  /** Show tokens, and return all frames of pixels; none where nothing is to be shown. */
  async #paint(tokens, drafts) {
    const { generated_tokens, length } = this.manifest, filled = [...tokens, ...drafts].slice(0, length);
    const { steps } = this, count = steps.length;
    const rest = new Array(length - filled.length).fill(generated_tokens.first);
    const images = filled.length ? await bitmaps(this.pixels, this.manifest, [...filled, ...rest]) : [];
    if (steps !== this.steps || count !== steps.length) return []; // Something newer is to be shown.
    // A frame of tokens may make several of pixels, the first one fewer than others: one of each is shown.
    const step = (images.length - 1) / Math.max(1, this.frames - 1);
    const shown = Array.from({ length: this.frames }, (_, frame) => images[Math.round(frame * step)]);
    this.#drawCells(filled.length, tokens.length, shown);
    const whole = Math.floor((tokens.length * this.frames) / length);
    if (whole) this.#showFrame(shown[whole - 1]);
    return images;
  }

  /** Final cells as they are, drafts veiled, the rest empty. A grid of cells covers every frame of tokens. */
  #drawCells(filled, final, images) {
    const { grid, pixel_graph, length } = this.manifest, context = this.canvas.getContext("2d");
    context.fillStyle = this.#colour("--open");
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = false;
    const wide = this.wide / grid.columns, tall = this.tall / grid.rows, each = length / this.frames;
    const sourceWide = pixel_graph.width / grid.columns, sourceTall = pixel_graph.height / grid.rows;
    context.fillStyle = this.#colour("--veil");
    for (let i = 0; i < filled; i++) {
      const frame = Math.floor(i / each), within = i % each;
      const column = within % grid.columns, row = Math.floor(within / grid.columns);
      const left = (frame % this.across) * (this.wide + GAP), top = Math.floor(frame / this.across) * (this.tall + GAP);
      const source = [column * sourceWide, row * sourceTall, sourceWide, sourceTall];
      const cell = [left + column * wide, top + row * tall, wide, tall];
      context.drawImage(images[frame], ...source, ...cell);
      if (i >= final) context.fillRect(...cell);
    }
  }

  #drawBars() {
    const { bars, steps, manifest, window } = this, context = bars.getContext("2d");
    this.#fit(bars);
    context.fillStyle = this.#colour("--accent");
    // The width of all steps of ar: the same for both panels, so that they can be compared.
    const pitch = bars.width / manifest.length;
    steps.forEach((committed, i) => {
      const tall = Math.max(1, (committed / window) * bars.height);
      context.fillRect(i * pitch, bars.height - tall, Math.max(1, 0.75 * pitch), tall);
    });
  }
}

/** An ImageBitmap of each frame of all tokens. */
async function bitmaps(session, manifest, tokens) {
  const { height, width, channels } = manifest.pixel_graph, frames = await drawFrames(session, manifest, tokens);
  return Promise.all(
    frames.map((values) => {
      const image = new ImageData(width, height);
      for (let i = 0; i < height * width; i++) {
        for (let c = 0; c < 3; c++) image.data[4 * i + c] = values[channels * i + (channels === 3 ? c : 0)];
        image.data[4 * i + 3] = 255;
      }
      return createImageBitmap(image);
    }),
  );
}
