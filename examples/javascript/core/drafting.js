/** Fresh drafts: first guesses for positions that were never guessed before, read off what lies to their left. */

/** The function of a specification, `repeat` or `copy:LAG`: (tokens, promptLength, wanted) to `wanted` guesses. */
export function findDrafting(specification) {
  const copy = /^copy:([1-9][0-9]*)$/.exec(specification);
  if (specification === "repeat") return copyFrom(1);
  if (copy) return copyFrom(Number(copy[1]));
  throw new RangeError(`drafting is ${JSON.stringify(specification)}, expected repeat or copy:LAG, such as copy:14`);
}

/** Guess the token `lag` positions before, if that was generated, else the token before. */
function copyFrom(lag) {
  return (tokens, promptLength, wanted) => {
    const all = [...tokens];
    while (all.length < tokens.length + wanted) {
      const source = all.length - lag;
      all.push(all[source >= promptLength ? source : all.length - 1]);
    }
    return all.slice(tokens.length);
  };
}
