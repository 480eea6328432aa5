/** One of the two drawings: a picture that grows, its figures, a bar for every step, and the drafts of one. */

import { drawPixels } from "./core/pixels.js";
import { drawTree } from "./tree.js";

const ZOOM = 10;

export class Panel {
  /**
   * @param {HTMLElement} section an empty section, filled from the page's template
   * @param manifest a bundle's manifest with a pixel graph and a grid
   * @param pixels a session of its pixel graph
   */
  constructor(section, manifest, pixels) {
    const { height, width } = manifest.pixel_graph;
    section.replaceChildren(document.querySelector("#panel").content.cloneNode(true));
    this.find = (selector) => section.querySelector(selector);
    this.find(".title").id = `${section.id}-title`;
    this.manifest = manifest;
    this.pixels = pixels;
    this.canvas = this.find("canvas");
    this.canvas.width = width * ZOOM;
    this.canvas.height = height * ZOOM;
    this.bars = this.find(".bars");
    this.section = section;
  }

  /** Begin a picture. */
  clear(method, prompt, window, branches) {
    Object.assign(this, { method, prompt, window, branches, steps: [], milliseconds: 0, best: null });
    this.find(".drafts").hidden = !branches;
    this.#drawTree({ path: 0, parents: [], walked: [] }, "Drafts of a step");
    this.find(".title").textContent = method;
    this.find("progress").setAttribute("aria-label", `${method}: part of the picture that is final`);
    for (const name of ["rate", "time"]) this.find(`.${name}`).textContent = "–";
    for (const name of ["steps", "count"]) this.find(`.${name}`).textContent = "0";
    this.find("progress").value = 0;
    this.#paint([], []);
    this.#drawBars();
    this.#describe(0);
  }

  /** Show what a forward pass left behind. */
  async show({ tokens, drafts, committed, nfe, milliseconds, tree, finished }) {
    this.steps.push(committed);
    this.milliseconds += milliseconds;
    this.find(".steps").textContent = nfe;
    this.find(".count").textContent = tokens.length;
    this.find(".rate").textContent = (tokens.length / nfe).toFixed(2);
    this.find(".time").textContent = `${(this.milliseconds / nfe).toFixed(1)} ms`;
    this.find("progress").value = tokens.length / this.manifest.length;
    this.#drawBars();
    this.#describe(tokens.length);
    if (this.branches) this.#showTree(tree, nfe, finished);
    await this.#paint(tokens, drafts);
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
    const most = Math.max(0, ...this.steps);
    this.bars.setAttribute("aria-label", `${this.steps.length} steps, at most ${most} tokens in one`);
  }

  #colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name);
  }

  /** Final cells as they are, drafts veiled, the rest empty. A grid of cells covers the picture. */
  async #paint(tokens, drafts) {
    const { grid, generated_tokens, pixel_graph, length } = this.manifest, { width, height } = this.canvas;
    const context = this.canvas.getContext("2d"), filled = [...tokens, ...drafts].slice(0, length);
    const { steps } = this, count = steps.length;
    const rest = new Array(length - filled.length).fill(generated_tokens.first);
    const image = filled.length ? await picture(this.pixels, this.manifest, [...filled, ...rest]) : null;
    if (steps !== this.steps || count !== steps.length) return; // Something newer is to be shown.
    context.fillStyle = this.#colour("--open");
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    const wide = width / grid.columns, tall = height / grid.rows;
    const sourceWide = pixel_graph.width / grid.columns, sourceTall = pixel_graph.height / grid.rows;
    context.fillStyle = this.#colour("--veil");
    filled.forEach((_, i) => {
      const column = i % grid.columns, row = Math.floor(i / grid.columns);
      const source = [column * sourceWide, row * sourceTall, sourceWide, sourceTall];
      const cell = [column * wide, row * tall, wide, tall];
      context.drawImage(image, ...source, ...cell);
      if (i >= tokens.length) context.fillRect(...cell);
    });
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

/** An ImageBitmap of all tokens. */
async function picture(session, manifest, tokens) {
  const { height, width, channels } = manifest.pixel_graph;
  const values = await drawPixels(session, manifest, tokens), image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = values[channels * i + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  return createImageBitmap(image);
}
