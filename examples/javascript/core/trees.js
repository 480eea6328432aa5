/**
 * Windows with branches: drafts beside those of the path, for the same positions or later ones (docs/trees.md). `findBranches` is
 * `BestFirst` of coupled_sampling/branching.py without corrected laws, and takes the likeliest.
 *
 * Drafts are numbered as there: those of the path from 0 on, then the branches. A draft's parent is the draft that it follows; -1 is
 * the last committed token. No two drafts behind one parent are the same token.
 */

/** How many tokens of a position to choose from. */
export const CANDIDATES = 16;

/** What scores are divided by before the softmax: a race's first is known to have been the first. */
const TEMPERATURE = 0.55;

/** The probability of a draft that no pass has looked at yet. */
const FRESH = 0.35;

/**
 * The likeliest branches, the likeliest first.
 * @param {number[]} path its drafts
 * @param {{tokens: number[], scores: number[]}[]} candidates of the positions from the path's first on, as far as any are known
 * @param {number} most branches
 * @param {number} reach how many positions, from the path's first on, branches may guess for: as many as the path at least
 * @returns {{parents: number[], tokens: number[]}}
 */
export function findBranches(path, candidates, most, reach) {
  const parents = [], tokens = [], open = [];
  if (!candidates.length) return { parents, tokens };
  const end = Math.min(reach, Math.max(candidates.length, path.length));
  const guesses = Array.from({ length: end }, (_, depth) => ranked(candidates[depth], path[depth]));

  /** Take the guess in the given place at a depth, behind a parent whose own probability is `before`, into account. */
  const consider = (parent, depth, place, before) => {
    const found = guesses[depth] ?? [];
    if (parent === depth - 1 && found[place]?.isPath) place += 1; // it has a slot
    if (place < found.length) open.push({ chance: before * found[place].chance, parent, depth, place, before });
  };
  let before = 1;
  for (let depth = 0; depth < Math.min(end, path.length + 1); depth++) {
    consider(depth - 1, depth, 0, before);
    before *= guesses[depth].find(({ isPath }) => isPath)?.chance ?? 0;
  }
  while (open.length && tokens.length < most) {
    let best = 0;
    open.forEach(({ chance }, i) => (best = chance > open[best].chance ? i : best)); // of equals the first
    const [next] = open.splice(best, 1);
    consider(next.parent, next.depth, next.place + 1, next.before);
    consider(path.length + tokens.length, next.depth + 1, 0, next.chance);
    parents.push(next.parent);
    tokens.push(guesses[next.depth][next.place].token);
  }
  return { parents, tokens };
}

/** Guesses for a position, the likeliest first; `draft`, if there is one, is the path's. */
function ranked(known, draft) {
  if (!known) return [{ token: draft, chance: FRESH, isPath: true }];
  const { tokens } = known, chances = softmax(known.scores.map((score) => score / TEMPERATURE));
  const own = (token, chance) => ({ token, chance, isPath: token === draft });
  const isOther = draft !== undefined && draft !== tokens[0];
  const found = isOther
    ? [own(draft, FRESH), ...tokens.map((token, i) => own(token, token === draft ? 0 : (1 - FRESH) * chances[i]))]
    : tokens.map((token, i) => own(token, chances[i]));
  return found.filter(({ chance }) => chance > 0).sort((a, b) => b.chance - a.chance);
}

function softmax(values) {
  const highest = Math.max(...values), weights = values.map((x) => Math.exp(x - (Number.isFinite(highest) ? highest : 0)));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => (total > 0 ? weight / total : 0));
}

/** `tokens`, best first, with the redraft in front: it may be another one of equal score, or rank lower. */
export function ledBy(redraft, tokens) {
  const place = tokens.indexOf(redraft), last = place < 0 ? tokens.length - 1 : place;
  return [redraft, ...tokens.slice(0, last), ...tokens.slice(last + 1)];
}

/** The drafts that stood, by number: from the last committed token on, as far as there is one that holds the next token. */
export function walk({ parents, tokens }, committed) {
  const found = [];
  for (const token of committed) {
    const parent = found.at(-1) ?? -1;
    const next = parents.findIndex((own, i) => own === parent && tokens[i] === token);
    if (next < 0) break;
    found.push(next);
  }
  return found;
}
