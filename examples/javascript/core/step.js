/**
 * One row's step graph (docs/step-graph.md), one for trees or not, with the state it keeps between two calls: caches, ring of race
 * noise, draft laws.
 *
 * In wasm, ONNX Runtime copies inputs and outputs at every call, so state is simply what the call before gave. On a graphics
 * processor state stays there: caches and ring are written in place, and old draft laws are let go once there are new ones. A call
 * that failed can be made again: what it may have written lies in columns that the next one writes.
 */

import { UnusableLogits } from "./errors.js";
import { raceWeights, uniforms } from "./philox.js";
import { CANDIDATES, ledBy } from "./trees.js";

/** Caches are read in multiples of this, so that shapes are few; the library uses the same. */
const KV_STEP = 32;

const NEEDED = ["input_ids", "start", "known", "recycled", "fresh", "draws", "temperature"];
const OF_TREES = ["parents", "branches", "best_count"];

const partsOf = ({ window_graph: { layers } }) =>
  Array.from({ length: layers }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();

/** Outputs of a step graph that are nothing but the next call's inputs. */
export function stateOf(manifest) {
  return [...partsOf(manifest).map((part) => `present.${part}`), "laws", "present_noise"];
}

export class Step {
  /**
   * @param session from `bundle.openStep`
   * @param manifest the bundle's manifest
   * @param {number} window most slots of a call
   * @param {{seed, sequence}} key of the noise, integers or BigInts
   * @param {number} first position of the first draft: the prompt's length
   */
  constructor(session, manifest, window, { seed, sequence }, first) {
    this.session = session;
    this.seed = seed;
    this.sequence = sequence;
    this.vocabulary = manifest.vocab_size;
    this.names = new Set(session.inputNames);
    this.takesBranches = this.names.has("parents");
    this.columns = (this.takesBranches ? manifest.tree_graph : manifest.window_graph).cache_length;
    this.parts = partsOf(manifest);
    const wanted = [...NEEDED, ...(this.takesBranches ? OF_TREES : []), ...this.parts.map((part) => `past_key_values.${part}`)];
    const known = new Set([...wanted, "kv_length", "uniforms", "draft_laws", "draft_laws_start"]);
    for (const name of ["noise", "noise_start", "past_noise"]) known.add(name);
    const missing = wanted.filter((name) => !this.names.has(name));
    const unknown = session.inputNames.filter((name) => !known.has(name));
    if (missing.length || unknown.length) {
      throw new Error(`the graph is no plain step graph: it lacks inputs [${missing}] and has unknown inputs [${unknown}]`);
    }
    this.lawsStart = 0;
    this.entered = first;
    this.inPlace = Object.fromEntries(this.parts.map((part) => [`present.${part}`, `past_key_values.${part}`]));
    if (this.names.has("past_noise")) this.inPlace.present_noise = "past_noise";
    const { kv_heads, head_size } = manifest.window_graph, shapes = { draft_laws: [1, 1, this.vocabulary] };
    for (const input of Object.values(this.inPlace)) shapes[input] = [1, kv_heads, this.columns, head_size];
    shapes.past_noise = [1, 2 * window + 2, this.vocabulary];
    const own = Object.entries(shapes).filter(([name]) => this.names.has(name));
    /** Tensors by the names of inputs. */
    this.state = Object.fromEntries(own.map(([name, shape]) => [name, session.zeros(...shape)]));
  }

  /** Let go of the state. */
  dispose() {
    for (const tensor of Object.values(this.state)) tensor.dispose();
  }

  /**
   * Forward a window and decide it.
   * @param {{tokens: number[], start, known, recycled, fresh, draws, round, temperature, branches: {parents, tokens}}} window
   *   branches, which a graph for trees takes, stand behind `tokens`; their parents are numbers of drafts, see trees.js
   * @returns {Promise<{tokens: number[], committed: number, failure: Error | null, candidates: {tokens, scores}[]}>}
   *   from slot known - 1 on: final tokens, then redrafts. Both end where no law can be made of a slot's logits; where the
   *   next final token would have come from there, `failure` says so. Candidates are of the redrafts, from a graph for trees
   */
  async run(window) {
    const { start, known, recycled, fresh, draws, temperature, branches } = window, { session } = this;
    const tokens = [...window.tokens, ...branches.tokens], width = tokens.length, end = known + recycled + fresh;
    const parents = [...window.tokens.map((_, i) => i - 1), ...branches.parents.map((draft) => draft + known)];
    const deepest = Math.max(...depths(parents));
    const feeds = {
      input_ids: session.integers(tokens, 1, width),
      start: session.integers([start], 1),
      known: session.integers([known], 1),
      recycled: session.integers([recycled], 1),
      fresh: session.integers([fresh], 1),
      draws: session.tensor("bool", [draws], [1]),
      temperature: session.floats([temperature], 1),
    };
    if (this.takesBranches) {
      feeds.parents = session.integers(parents, 1, width);
      feeds.branches = session.integers([branches.tokens.length], 1);
      feeds.best_count = session.integers([Math.min(CANDIDATES, this.vocabulary)], 1);
    }
    if (this.names.has("kv_length")) {
      const columns = Math.min(Math.ceil((start + width) / KV_STEP) * KV_STEP, this.columns);
      feeds.kv_length = session.integers([columns], 1);
    }
    Object.assign(feeds, this.state);
    if (this.names.has("draft_laws")) {
      feeds.draft_laws_start = session.integers([this.lawsStart], 1);
      feeds.uniforms = this.#uniforms(window.round, start + 1, width);
    }
    const entered = start + deepest + 2; // one past the last position that any slot decides
    if (this.names.has("past_noise")) {
      feeds.noise_start = session.integers([this.entered], 1);
      feeds.noise = this.#noise(this.entered, entered);
    } else if (this.names.has("noise")) {
      feeds.noise = this.#noise(start + known, start + known + 1);
    }
    const found = await session.run(feeds, this.inPlace);
    for (const [output, input] of Object.entries(this.inPlace)) this.#keep(input, found[output]);
    if (this.names.has("draft_laws")) this.#keep("draft_laws", found.laws);
    this.lawsStart = start;
    if (draws) this.entered = Math.max(this.entered, entered);
    return outcome(found, known, end, draws, start + known);
  }

  #keep(name, tensor) {
    if (tensor !== this.state[name]) this.state[name].dispose();
    this.state[name] = tensor;
  }

  /** The first three uniforms of each of `count` positions. */
  #uniforms(round, first, count) {
    const drawn = uniforms(this.seed, this.sequence, round, first, count);
    return this.session.tensor("float64", drawn.filter((_, i) => i % 4 < 3), [1, count, 3]);
  }

  /** Race weights, rounded to float32, of positions `first` to `end - 1`; of `first` at least, since no tensor may be empty. */
  #noise(first, end) {
    const count = Math.max(1, end - first), weights = new Float32Array(count * this.vocabulary);
    for (let i = 0; i < count; i++) {
      weights.set(raceWeights(this.seed, this.sequence, first + i, this.vocabulary), i * this.vocabulary);
    }
    return this.session.floats(weights, 1, count, this.vocabulary);
  }
}

/** How many slots stand before each on its path. */
function depths(parents) {
  const found = [];
  for (const parent of parents) found.push(parent < 0 ? 0 : found[parent] + 1);
  return found;
}

/** What the outputs `found` say, of a path of slots up to `end`; what is decided first is for `position`. */
function outcome(found, known, end, draws, position) {
  const committed = Number(found.committed.data[0]);
  // A branch may have been followed beyond the path's end.
  const sites = [known - 1, Math.max(end, known - 1 + committed)];
  const tokens = Array.from(found.tokens.data.slice(...sites), Number);
  if (!draws) return { tokens, committed, failure: null, candidates: [] };
  const made = closed(tokens, committed, Array.from(found.highest_logits.data.slice(...sites)), position);
  const redrafts = found.best_tokens ? made.tokens.slice(made.committed) : [];
  return { ...made, candidates: redrafts.map((redraft, i) => candidatesAt(found, known - 1 + made.committed + i, redraft)) };
}

function candidatesAt({ best_tokens, best_scores }, site, redraft) {
  const count = best_tokens.dims[2], own = [site * count, (site + 1) * count];
  const tokens = Array.from(best_tokens.data.slice(...own), Number);
  return { tokens: ledBy(redraft, tokens), scores: Array.from(best_scores.data.slice(...own)) };
}

/**
 * What was decided up to the first slot of which no law can be made, its largest logit NaN or infinite: there drafts end, since
 * a draft behind them may have a context that cannot occur. What the graph found at that slot and behind it means nothing.
 * `tokens[0]` is for `position`.
 */
function closed(tokens, committed, highest, position) {
  const end = highest.findIndex((logit) => !Number.isFinite(logit));
  if (end < 0) return { tokens, committed, failure: null };
  const failure = committed > end ? new UnusableLogits(position + end, highest[end]) : null;
  return { tokens: tokens.slice(0, end), committed: Math.min(committed, end), failure };
}
