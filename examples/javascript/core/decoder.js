/**
 * The decoding loop of coupled_sampling/decoding.py for one sequence: the tokens after the cached prefix, known ones first,
 * then recycled drafts, then fresh ones, up to the window; forward and decide; commit; keep the redrafts. A prompt that is longer
 * than a window is read before.
 */

import { findDrafting } from "./drafting.js";
import { Step } from "./step.js";

/** Most tokens of a prompt in a pass. */
const PROMPT_CHUNK = 256;

function expectInteger(name, value, least, most) {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new RangeError(`${name} is ${value}, expected an integer from ${least} to ${most}`);
  }
}

/**
 * Generate one sequence, yielding after every forward pass.
 *
 * @param bundle from `openBundle`
 * @param session from `bundle.openStep(method)`
 * @param {object} settings
 *   method, prompt (tokens), window, drafting, seed, sequence and temperature; what is absent is the bundle's default, or 0
 * @yields {{tokens: number[], drafts: number[], committed: number, nfe: number, finished: boolean, milliseconds: number}}
 *   all generated tokens so far, the drafts that follow them, how many tokens this pass committed, and its time
 * @throws {UnusableLogits} after the last tokens that could be decided: names the request and the position
 */
export async function* decode(bundle, session, settings) {
  const { manifest } = bundle, { defaults, window_graph } = manifest;
  const { method, prompt, window = Math.min(defaults.window, window_graph.max_window) } = settings;
  const { drafting = defaults.drafting, seed = 0, sequence = 0, temperature = defaults.temperature ?? 1 } = settings;
  expectInteger("window", window, 1, window_graph.max_window);
  if (!(temperature >= 0 && temperature < Infinity)) {
    throw new RangeError(`temperature is ${temperature}, expected a number >= 0`);
  }
  const rule = findDrafting(drafting, manifest.fill_token ?? null);
  const drafts = method !== "ar", total = prompt.length + manifest.length;
  const step = new Step(session, manifest, window, { seed, sequence }, prompt.length);
  const stop = new Set(manifest.stop_tokens ?? []);

  // A prompt that does not fit a window is read in chunks of its own, up to its last token, whose logits are wanted.
  const chunk = Math.min(PROMPT_CHUNK, window_graph.max_window), last = prompt.length - 1;
  const readsTo = (from) =>
    prompt.length > window && from < last ? Math.min(from + chunk, last) : undefined;

  // Committed tokens, then recycled drafts.
  let tokens = [...prompt], committed = prompt.length, cached = 0, nfe = 0, round = 0, finished = false, failure = null;
  while (!finished) {
    const began = performance.now();
    const guesses = drafts && !rule.waits(tokens, prompt.length);
    const end = readsTo(cached) ?? Math.min(cached + window, guesses ? total - 1 : Math.min(tokens.length, total - 1));
    const known = Math.min(end, committed), drafted = Math.min(end, tokens.length);
    const draws = known === committed;
    const slots = [...tokens.slice(cached, drafted), ...rule.propose(tokens, prompt.length, end - drafted)];
    const sizes = { known: known - cached, recycled: drafted - known, fresh: end - drafted };
    const outcome = await step.run({ tokens: slots, start: cached, ...sizes, draws, round, temperature });
    nfe += 1;
    let fixed = [];
    if (draws) {
      round += 1;
      const stopped = outcome.tokens.slice(0, outcome.committed).findIndex((token) => stop.has(token));
      fixed = outcome.tokens.slice(0, stopped < 0 ? outcome.committed : stopped + 1);
      const recycled = drafts && stopped < 0 ? outcome.tokens.slice(outcome.committed) : [];
      tokens = [...tokens.slice(0, committed), ...fixed, ...recycled];
      committed += fixed.length;
      cached = committed - 1;
      finished = stopped >= 0 || committed === total;
      failure = stopped < 0 ? outcome.failure : null; // what follows a stop token is discarded
    } else {
      cached = known;
    }
    yield {
      tokens: tokens.slice(prompt.length, committed),
      drafts: tokens.slice(committed),
      committed: fixed.length,
      nfe,
      finished,
      milliseconds: performance.now() - began,
    };
    if (failure) {
      failure.message = `request with seed ${seed}, sequence ${sequence}: ${failure.message}`;
      throw failure;
    }
  }
}
