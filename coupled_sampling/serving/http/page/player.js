/** Clips that repeat. All of them follow one clock, so that two of the same length show the same frame at the same time. */

const clock = { paused: matchMedia("(prefers-reduced-motion: reduce)").matches, shown: 0, since: performance.now() };

const time = () => clock.shown + (clock.paused ? 0 : performance.now() - clock.since);

export const isPaused = () => clock.paused;

/** Let all clips stand, or go on from where they stood. */
export function pause(wanted) {
  [clock.shown, clock.since, clock.paused] = [time(), performance.now(), wanted];
}

export class Player {
  #run = 0;

  /** @param {(frame: ImageBitmap) => void} show is given every frame when its time comes */
  constructor(show) {
    this.show = show;
  }

  /** Repeat `frames`, `fps` of them in a second, until `stop`. */
  play(frames, fps) {
    const own = ++this.#run;
    let last = null;
    const look = () => {
      if (own !== this.#run) return;
      const frame = frames[Math.floor((time() * fps) / 1000) % frames.length];
      if (frame !== last) this.show((last = frame));
      requestAnimationFrame(look);
    };
    look();
  }

  stop() {
    this.#run += 1;
  }
}
