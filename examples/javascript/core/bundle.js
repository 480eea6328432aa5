/**
 * A bundle, a model as a folder (docs/bundle-format.md), read through a function from a file's name to its bytes, so that
 * Node and the browser share all of this. No file reaches ONNX Runtime before its size and SHA-256 were compared with the manifest.
 */

import { BundleError } from "./errors.js";
import { openRuntime } from "./runtime.js";
import { stateOf } from "./step.js";

const FORMAT = "coupled-sampling-bundle";
const NEWEST = 8;
const METHODS = ["ar", "sjd", "scd-maximal", "scd-gumbel", "scd-match"];

/** Their graphs compare uniforms and laws in float64, for which ONNX Runtime's build with WebGPU has no kernels, even on the CPU. */
const OF_FLOAT64 = ["sjd", "scd-maximal", "scd-gumbel"];

function expect(condition, field, found, expected) {
  if (!condition) throw new BundleError(`manifest.json: ${field} is ${JSON.stringify(found)}, expected ${expected}`);
}

/**
 * Open a bundle.
 * @param {(name: string) => Promise<Uint8Array>} read gives the bytes of a file of the folder
 * @param {{provider?: string}} settings provider: `wasm`, or `webgpu` in a browser that has it
 * @throws {UnusableWebGPU} where `webgpu` is asked for and there is none
 */
export async function openBundle(read, { provider = "wasm" } = {}) {
  const runtime = await openRuntime(provider);
  const bytes = await read("manifest.json");
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BundleError(`manifest.json is not UTF-8 JSON: ${error.message}`);
  }
  check(manifest);
  return new Bundle(manifest, read, runtime);
}

/** Refuse what these scripts cannot decode faithfully; files are checked when they are read. */
function check(manifest) {
  expect(manifest?.format === FORMAT, "format", manifest?.format, `"${FORMAT}"`);
  const version = manifest.format_version;
  expect(Number.isInteger(version) && version >= 1, "format_version", version, "an integer from 1 on");
  expect(version <= NEWEST, "format_version", version, `at most ${NEWEST}; use newer scripts`);
  const window = manifest.window_graph;
  expect(window?.dtype === "float32", "window_graph.dtype", window?.dtype, `"float32", the only one that these scripts compute in`);
  expect(!manifest.layout?.length, "layout", manifest.layout, "none: a step graph has no logits processors");
  expect(!manifest.prompt_frames, "prompt_frames", manifest.prompt_frames, "none: these scripts show what is generated alone");
  expect(!manifest.condition_graph, "condition_graph", manifest.condition_graph, "none: a step graph is told no vectors");
  expect(Array.isArray(manifest.step_graphs), "step_graphs", manifest.step_graphs, "a list; export the bundle again");
  const { top_k = null, top_p = 1, min_p = 0, guidance = 1 } = manifest.defaults;
  const plain = top_k === null && top_p === 1 && min_p === 0 && guidance === 1;
  expect(plain, "defaults", { top_k, top_p, min_p, guidance }, "the plain law: these scripts neither warp nor guide");
}

export class Bundle {
  #read;
  #weights;

  constructor(manifest, read, runtime) {
    this.manifest = manifest;
    this.runtime = runtime;
    this.#read = read;
  }

  /** The step graph that is neither warped nor guided nor corrected, nor TensorRT's, whose noise is another input. */
  #plain(method, takesBranches) {
    return this.manifest.step_graphs.find(
      ({ warped, guided, corrected = false, tree = false, noise = "ring", ...graph }) =>
        graph.method === method && tree === takesBranches && !warped && !guided && !corrected && noise === "ring",
    );
  }

  /** Methods that have a plain step graph, which this runtime has kernels for. */
  get methods() {
    const lacks = this.runtime.isGPU ? OF_FLOAT64 : [];
    return METHODS.filter((method) => this.#plain(method, false) && !lacks.includes(method));
  }

  /** Whether windows of a method may have branches: it has a step graph for trees, too. */
  takesBranches(method) {
    return Boolean(this.manifest.tree_graph && this.#plain(method, true));
  }

  /** How many slots of a window are for branches, if nobody says: the bundle's number goes with its own window. */
  usualBranches(method, window) {
    return window === undefined && this.takesBranches(method) ? (this.manifest.defaults.branches ?? 0) : 0;
  }

  /** Tokens of a prompt, by its name or an alias, whatever the case. */
  findPrompt(name) {
    const wanted = name.toLowerCase(), prompts = Object.entries(this.manifest.prompts);
    const found = prompts.find(([own, prompt]) => [own, ...prompt.aliases].some((x) => x.toLowerCase() === wanted));
    if (found) return found[1].tokens;
    throw new RangeError(`prompt is ${JSON.stringify(name)}, expected one of ${prompts.map(([own]) => own).join(", ")}`);
  }

  /** A session for a method's step graph: the one for trees where there are to be branches. */
  async openStep(method, branches = 0) {
    return this.runtime.createSession(...(await this.#load(this.#stepFile(method, branches))), stateOf(this.manifest));
  }

  /**
   * Where webgpu computes the nodes of a method's step graph: {nodes, device, cpu}, how many there are, and names by operator of
   * those on the device and of those that are left to the CPU.
   */
  async listPlacement(method, branches = 0) {
    return this.runtime.listPlacement(...(await this.#load(this.#stepFile(method, branches))));
  }

  #stepFile(method, branches) {
    if (!this.methods.includes(method)) {
      const { provider, isGPU } = this.runtime, has = `this bundle has ${this.methods.join(", ")} for ${provider}`;
      const reason = isGPU && OF_FLOAT64.includes(method) ? "; that one needs float64, which webgpu lacks" : "";
      throw new RangeError(`method is ${JSON.stringify(method)}, ${has}${reason}`);
    }
    if (branches && !this.takesBranches(method)) {
      const takers = this.methods.filter((one) => this.takesBranches(one)).join(", ") || "no method";
      throw new RangeError(`branches is ${branches}, expected 0 with ${method}: this bundle has step graphs for trees for ${takers}`);
    }
    return this.#plain(method, branches > 0).file;
  }

  /** A session for the pixel graph, or null. */
  async openPixels() {
    return this.manifest.pixel_graph ? this.runtime.createSession(...(await this.#load(this.manifest.pixel_graph.file))) : null;
  }

  /** A graph's bytes and the weights. */
  async #load(file) {
    // Read once: graphs refer to the same files of weights.
    this.#weights ??= Promise.all(
      this.#weightFiles().map(async (path) => ({ path, data: await this.#checked(path) })),
    ).catch((error) => {
      this.#weights = undefined;
      throw error;
    });
    return Promise.all([this.#checked(file), this.#weights]);
  }

  /** Files that are no graph, no text's and no corrections hold weights. */
  #weightFiles() {
    const { files, window_graph, tree_graph, causal_graph, pixel_graph, step_graphs, corrections, ...rest } = this.manifest;
    const parts = [window_graph, tree_graph, causal_graph, pixel_graph, corrections, ...step_graphs];
    const others = parts.map((record) => record?.file);
    others.push(corrections?.network, rest.tokenizer, rest.chat_template);
    return Object.keys(files).filter((name) => !others.includes(name));
  }

  async #checked(name) {
    const record = this.manifest.files[name];
    expect(record, "files", Object.keys(this.manifest.files), `a record of ${name}`);
    const bytes = await this.#read(name);
    if (bytes.length !== record.bytes) {
      throw new BundleError(`${name} has ${bytes.length} bytes, the manifest says ${record.bytes}; fetch the bundle again`);
    }
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== record.sha256) {
      throw new BundleError(`${name} has SHA-256 ${found}, the manifest says ${record.sha256}; fetch the bundle again`);
    }
    return bytes;
  }
}
