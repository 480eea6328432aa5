/**
 * One row's step graph (docs/step-graph.md) with the state it keeps between two calls: caches, ring of race noise, draft laws.
 *
 * ONNX Runtime's wasm copies inputs and outputs at every call, so state is simply what the call before gave. It changes
 * only after a call that succeeded: one that failed can be made again.
 */

import * as ort from "onnxruntime-web";

import { UnusableLogits } from "./errors.js";
import { raceWeights, uniforms } from "./philox.js";

/** Caches are read in multiples of this, so that shapes are few; the library uses the same. */
const KV_STEP = 32;

/** Without this every call warns of every cache that it copies. */
const ERRORS_ONLY = { logSeverityLevel: 3 };

const NEEDED = ["input_ids", "start", "known", "recycled", "fresh", "draws", "temperature"];

const floats = (values, ...shape) => new ort.Tensor("float32", values, shape);
const zeros = (...shape) => floats(new Float32Array(shape.reduce((a, b) => a * b)), ...shape);
const integers = (values, ...shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);

export class Step {
  /**
   * @param session an onnxruntime session of a plain step graph
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
    const { layers, kv_heads, cache_length, head_size } = manifest.window_graph;
    this.columns = cache_length;
    const parts = Array.from({ length: layers }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
    const wanted = [...NEEDED, ...parts.map((part) => `past_key_values.${part}`)];
    const known = new Set([...wanted, "kv_length", "uniforms", "draft_laws", "draft_laws_start"]);
    for (const name of ["noise", "noise_start", "past_noise"]) known.add(name);
    const missing = wanted.filter((name) => !this.names.has(name));
    const unknown = session.inputNames.filter((name) => !known.has(name));
    if (missing.length || unknown.length) {
      throw new Error(`the graph is no plain step graph: it lacks inputs [${missing}] and has unknown inputs [${unknown}]`);
    }
    this.caches = Object.fromEntries(parts.map((part) => [part, zeros(1, kv_heads, cache_length, head_size)]));
    this.laws = zeros(1, 1, this.vocabulary);
    this.lawsStart = 0;
    this.ring = zeros(1, 2 * window + 2, this.vocabulary);
    this.entered = first;
  }

  /**
   * Forward a window and decide it.
   * @param {{tokens: number[], start, known, recycled, fresh, draws, round, temperature}} window
   * @returns {Promise<{tokens: number[], committed: number, failure: Error | null}>}
   *   from slot known - 1 on: final tokens, then redrafts. Both end where no law can be made of a slot's logits; where the
   *   next final token would have come from there, `failure` says so
   */
  async run(window) {
    const { tokens, start, known, recycled, fresh, draws, temperature } = window;
    const width = tokens.length, end = start + known + recycled + fresh + 1;
    const feeds = {
      input_ids: integers(tokens, 1, width),
      start: integers([start], 1),
      known: integers([known], 1),
      recycled: integers([recycled], 1),
      fresh: integers([fresh], 1),
      draws: new ort.Tensor("bool", [draws], [1]),
      temperature: floats([temperature], 1),
    };
    if (this.names.has("kv_length")) {
      const columns = Math.min(Math.ceil((start + width) / KV_STEP) * KV_STEP, this.columns);
      feeds.kv_length = integers([columns], 1);
    }
    for (const [part, cache] of Object.entries(this.caches)) feeds[`past_key_values.${part}`] = cache;
    if (this.names.has("draft_laws")) {
      feeds.draft_laws = this.laws;
      feeds.draft_laws_start = integers([this.lawsStart], 1);
      feeds.uniforms = this.#uniforms(window.round, start + 1, width);
    }
    if (this.names.has("past_noise")) {
      feeds.past_noise = this.ring;
      feeds.noise_start = integers([this.entered], 1);
      feeds.noise = this.#noise(this.entered, end);
    } else if (this.names.has("noise")) {
      feeds.noise = this.#noise(start + known, start + known + 1);
    }
    const found = await this.session.run(feeds, ERRORS_ONLY);
    for (const part of Object.keys(this.caches)) this.caches[part] = found[`present.${part}`];
    this.laws = found.laws ?? this.laws;
    this.lawsStart = start;
    this.ring = found.present_noise ?? this.ring;
    if (draws) this.entered = Math.max(this.entered, end);
    const decided = Array.from(found.tokens.data.slice(known - 1, end - start - 1), Number);
    const committed = Number(found.committed.data[0]);
    const highest = Array.from(found.highest_logits.data.slice(known - 1, end - start - 1));
    return draws ? closed(decided, committed, highest, start + known) : { tokens: decided, committed, failure: null };
  }

  /** The first three uniforms of each of `count` positions. */
  #uniforms(round, first, count) {
    const drawn = uniforms(this.seed, this.sequence, round, first, count);
    return new ort.Tensor("float64", drawn.filter((_, i) => i % 4 < 3), [1, count, 3]);
  }

  /** Race weights, rounded to float32, of positions `first` to `end - 1`; of `first` at least, since no tensor may be empty. */
  #noise(first, end) {
    const count = Math.max(1, end - first), weights = new Float32Array(count * this.vocabulary);
    for (let i = 0; i < count; i++) {
      weights.set(raceWeights(this.seed, this.sequence, first + i, this.vocabulary), i * this.vocabulary);
    }
    return floats(weights, 1, count, this.vocabulary);
  }
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
