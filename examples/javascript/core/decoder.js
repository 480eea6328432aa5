/**
 * The decoding loop of coupled_sampling/decoding.py for one sequence: the tokens after the cached prefix, known ones first,
 * then recycled drafts, then fresh ones, up to the window, and beside these branches; forward and decide; commit; keep the redrafts.
 * A prompt that is longer than a window is read before.
 */

import { findDrafting } from "./drafting.js";
import { Step } from "./step.js";
import { findBranches, walk } from "./trees.js";

/** Most tokens of a prompt in a pass. */
const PROMPT_CHUNK = 256;

function expectInteger(name, value, least, most) {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new RangeError(`${name} is ${value}, expected an integer from ${least} to ${most}`);
  }
}

const NO_BRANCHES = { parents: [], tokens: [] };

/**
 * Generate one sequence, yielding after every forward pass.
 *
 * @param bundle from `openBundle`
 * @param session from `bundle.openStep(method, branches)`
 * @param {object} settings
 *   method, prompt (tokens), window, branches, drafting, seed, sequence and temperature; what is absent is the bundle's default, or 0
 * @yields {{tokens: number[], drafts: number[], committed: number, nfe: number, finished, milliseconds, bytes, tree}}
 *   all generated tokens so far, the drafts that follow them, how many tokens this pass committed, its time, and how many bytes
 *   of JavaScript's memory it took and gave, {in, out}; `tree` is
 *   {path, parents, walked}: how many drafts stood on the path, parents of these and of branches, and the drafts that held
 * @throws {UnusableLogits} after the last tokens that could be decided: names the request and the position
 */
export async function* decode(bundle, session, settings) {
  const { manifest } = bundle, { defaults, window_graph, tree_graph } = manifest, { max_window } = window_graph;
  const { method, prompt, window = Math.min(defaults.window, max_window) } = settings;
  const { branches = bundle.usualBranches(method, settings.window), drafting = defaults.drafting } = settings;
  const { seed = 0, sequence = 0, temperature = defaults.temperature ?? 1 } = settings;
  const columns = branches ? tree_graph.cache_length : max_window;
  expectInteger("window", window, 1, columns);
  // One slot is for a known token, and one for a draft to stand beside.
  if (branches) expectInteger("branches", branches, 0, window - 2);
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw new RangeError(`temperature is ${temperature}, expected a number >= 0`);
  }
  const rule = findDrafting(drafting, manifest.fill_token ?? null);
  const drafts = method !== "ar", total = prompt.length + manifest.length;
  const step = new Step(session, manifest, window, { seed, sequence }, prompt.length);
  if (branches && !step.takesBranches) throw new RangeError(`branches is ${branches}, expected a session opened for branches`);
  const stop = new Set(manifest.stop_tokens ?? []);
  // The path is no wider than the model takes at once; branches may come on top.
  const widest = Math.min(window, max_window), kept = Math.max(0, branches - (window - widest));

  // A prompt that does not fit a window is read in chunks of its own, up to its last token, whose logits are wanted.
  const chunk = Math.min(PROMPT_CHUNK, max_window), last = prompt.length - 1;
  const readsTo = (from) => (prompt.length > widest && from < last ? Math.min(from + chunk, last) : undefined);

  // Committed tokens, then recycled drafts.
  let tokens = [...prompt], committed = prompt.length, cached = 0, nfe = 0, round = 0, finished = false, failure = null;
  let candidates = []; // of the positions from `committed` on
  try {
    while (!finished) {
      const began = performance.now(), before = { ...session.bytes };
      const guesses = drafts && !rule.waits(tokens, prompt.length);
      // Slots are left for branches, but what is known goes first, and a draft: where none is redrawn, no branch is chosen.
      const most = Math.max(widest - kept, Math.min(widest, committed - cached + 1));
      const end = readsTo(cached) ?? Math.min(cached + most, guesses ? total - 1 : Math.min(tokens.length, total - 1));
      const known = Math.min(end, committed), drafted = Math.min(end, tokens.length);
      const draws = known === committed;
      const slots = [...tokens.slice(cached, drafted), ...rule.propose(tokens, prompt.length, end - drafted)];
      const path = slots.slice(known - cached), room = Math.min(window - slots.length, columns - end);
      const open = total - 1 - committed;
      const beside = branches && draws && open > 0 && room > 0 ? findBranches(path, candidates, room, open) : NO_BRANCHES;
      const sizes = { known: known - cached, recycled: drafted - known, fresh: end - drafted };
      const outcome = await step.run({ tokens: slots, branches: beside, start: cached, ...sizes, draws, round, temperature });
      nfe += 1;
      let fixed = [];
      if (draws) {
        round += 1;
        const stopped = outcome.tokens.slice(0, outcome.committed).findIndex((token) => stop.has(token));
        fixed = outcome.tokens.slice(0, stopped < 0 ? outcome.committed : stopped + 1);
        const recycled = drafts && stopped < 0 ? outcome.tokens.slice(outcome.committed) : [];
        tokens = [...tokens.slice(0, committed), ...fixed, ...recycled];
        candidates = outcome.candidates;
        // The last token was no input yet. Nor is there any state for those that were drafts of branches: they go in again.
        const differs = fixed.slice(0, -1).findIndex((token, i) => token !== path[i]);
        cached = committed + (differs < 0 ? fixed.length - 1 : differs);
        committed += fixed.length;
        finished = stopped >= 0 || committed === total;
        failure = stopped < 0 ? outcome.failure : null; // what follows a stop token is discarded
      } else {
        cached = known;
      }
      const parents = [...path.map((_, i) => i - 1), ...beside.parents];
      yield {
        tokens: tokens.slice(prompt.length, committed),
        drafts: tokens.slice(committed),
        committed: fixed.length,
        nfe,
        finished,
        milliseconds: performance.now() - began,
        bytes: { in: session.bytes.in - before.in, out: session.bytes.out - before.out },
        tree: { path: path.length, parents, walked: walk({ parents, tokens: [...path, ...beside.tokens] }, fixed) },
      };
      if (failure) {
        failure.message = `request with seed ${seed}, sequence ${sequence}: ${failure.message}`;
        throw failure;
      }
    }
  } finally {
    step.dispose(); // also where nobody asks for the rest
  }
}
