/** One side: a picture, a clip or a text that grows, its tokens coloured by the pass that committed them, and its figures. */

import { Player } from "./player.js";

const CELL = 12; // canvas pixels of a token
const TURN = 137.5; // degrees of hue between passes: neighbours differ, and no two near each other are alike

export class Panel {
  /** @param {HTMLElement} section filled from the page's template */
  constructor(section) {
    section.replaceChildren(document.querySelector("#panel").content.cloneNode(true));
    this.find = (selector) => section.querySelector(selector);
    this.find(".title").id = `${section.id}-title`;
    this.player = new Player((frame) => this.#draw(frame));
  }

  /** Begin. `sheet` says where its tokens are drawn, or is null; `length` is how many tokens there may be. */
  clear({ method, prompt, picture, sheet, length }) {
    Object.assign(this, { method, prompt, sheet, length, tokens: [], frames: [], passes: 0, began: null, done: false });
    this.player.stop();
    this.find(".title").textContent = method;
    this.find(".canvases").hidden = !picture;
    this.find(".text").hidden = picture;
    this.find(".text").replaceChildren();
    this.find(".text").setAttribute("aria-label", `Text by ${method}`);
    const drawing = this.find(".cells");
    drawing.hidden = !sheet;
    if (sheet) [drawing.height, drawing.width] = [sheet.height * CELL, sheet.width * CELL];
    const shown = this.find(".picture");
    [shown.height, shown.width] = sheet?.frame ?? [1, 1]; // which empties it
    this.find("progress").setAttribute("aria-label", `${method}: part that is final`);
    this.find(".seconds").textContent = "–";
    this.#figures();
  }

  /** Show what a pass committed; `passes` are those so far. */
  commit(tokens, passes) {
    this.began ??= performance.now();
    if (this.sheet) {
      const context = this.find(".cells").getContext("2d");
      context.fillStyle = colour(passes);
      tokens.forEach((_, i) => {
        const [x, y] = this.sheet.at(this.tokens.length + i);
        context.fillRect(x * CELL, y * CELL, CELL - 1, CELL - 1);
      });
    }
    this.tokens.push(...tokens);
    this.passes = passes;
    this.#figures();
  }

  /** Add a piece of text, which the latest pass made. */
  write(text) {
    const piece = document.createElement("span");
    piece.textContent = text;
    piece.style.borderBottomColor = colour(this.passes);
    this.find(".text").append(piece);
  }

  /** Show a picture, whole or partial, or the next frame of a clip: what `imageOf` makes. */
  paint(image) {
    this.frames.push(image);
    this.#draw(image);
  }

  /** Repeat all that was painted, from now on. */
  play(fps) {
    this.player.play(this.frames, fps);
  }

  #draw(image) {
    const canvas = this.find(".picture");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").drawImage(image, 0, 0);
  }

  /** The end; `acceptance` is what the server says about it. */
  finish(acceptance) {
    this.done = true;
    this.#figures(acceptance);
  }

  #figures(acceptance) {
    const passes = acceptance?.passes ?? this.passes, count = acceptance?.tokens ?? this.tokens.length;
    this.passes = passes;
    this.find(".passes").textContent = passes;
    this.find(".count").textContent = count;
    this.find(".rate").textContent = passes ? (count / passes).toFixed(2) : "–";
    if (this.began !== null) this.find(".seconds").textContent = ((performance.now() - this.began) / 1000).toFixed(2);
    this.find("progress").value = this.done ? 1 : Math.min(1, count / this.length);
    this.find(".picture").setAttribute("aria-label", `${this.prompt} by ${this.method}, ${count} of ${this.length} tokens`);
    this.find(".cells").setAttribute("aria-label", `Tokens by ${this.method}: ${count} in ${passes} passes`);
  }
}

function colour(pass) {
  return `hsl(${Math.round(pass * TURN) % 360} 60% 55%)`;
}

/** An ImageBitmap of a file in base 64. Not an image's address: the page may load nothing from elsewhere, its own text included. */
export function imageOf(file, type) {
  const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type }));
}
