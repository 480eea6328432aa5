/** A clip that repeats. All clips follow one clock: those of the same length show the same frame at the same time. */

export const FPS = 8;

const clock = { paused: matchMedia("(prefers-reduced-motion: reduce)").matches, shown: 0, since: performance.now() };

const time = () => clock.shown + (clock.paused ? 0 : performance.now() - clock.since);

export const isPaused = () => clock.paused;

/** Let all clips stand, or go on from where they stood. */
export function pause(wanted) {
  [clock.shown, clock.since, clock.paused] = [time(), performance.now(), wanted];
}

/** Give every frame to `show` when its time comes, for as long as `wanted()`. */
export function play(frames, show, wanted) {
  let last = null;
  const look = () => {
    if (!wanted()) return;
    const frame = frames[Math.floor((time() * FPS) / 1000) % frames.length];
    if (frame !== last) show((last = frame));
    requestAnimationFrame(look);
  };
  look();
}
