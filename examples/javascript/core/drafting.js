/** Fresh drafts: first guesses for positions that were never guessed before, read off what lies to their left. */

/**
 * The rule of a specification, `repeat` or `copy:LAG`: `propose(tokens, promptLength, wanted)` gives `wanted` guesses.
 *
 * What is copied was generated: a prompt's tokens may be such as cannot stand behind it. Where nothing was generated yet the guess is
 * `fill`, the bundle's fill token; where that is null, `waits` says so, and the first pass has no drafts.
 */
export function findDrafting(specification, fill = null) {
  const copy = /^copy:([1-9][0-9]*)$/.exec(specification);
  if (specification === "repeat") return copyFrom(1, fill);
  if (copy) return copyFrom(Number(copy[1]), fill);
  throw new RangeError(`drafting is ${JSON.stringify(specification)}, expected repeat or copy:LAG, such as copy:14`);
}

/** Guess the token `lag` positions before, if that was generated, else the token before, if that was. */
function copyFrom(lag, fill) {
  const propose = (tokens, promptLength, wanted) => {
    const all = [...tokens];
    while (all.length < tokens.length + wanted) {
      const source = all.length - lag;
      const before = all.length > promptLength || fill === null ? all[all.length - 1] : fill;
      all.push(source >= promptLength ? all[source] : before);
    }
    return all.slice(tokens.length);
  };
  return { propose, waits: (tokens, promptLength) => fill === null && tokens.length <= promptLength };
}
