/**
 * ONNX Runtime in one of its two builds: `wasm` computes on the CPU, in Node and everywhere else; `webgpu` on the graphics
 * processor, in browsers that have WebGPU. What the second has no kernels for it computes on the CPU in wasm: `listPlacement` says
 * which nodes these are. A build is loaded when it is first asked for.
 */

import { UnusableWebGPU } from "./errors.js";

const BUILDS = {
  wasm: () => import("onnxruntime-web"),
  webgpu: () => import("onnxruntime-web/webgpu"),
};

export const PROVIDERS = Object.keys(BUILDS);

/** Severities of ONNX Runtime's logs. At the first it says where nodes go, and below the second it warns of those on the CPU. */
const VERBOSE = 0, ERROR = 3;

/** Without this every call of a graph in wasm warns of every cache that it copies. */
const ERRORS_ONLY = { logSeverityLevel: ERROR };

const opened = new Map();

/**
 * The runtime of a provider. There is one of each, whoever asks.
 * @param {string} provider `wasm` or `webgpu`
 * @throws {UnusableWebGPU} where `webgpu` is asked for and there is none: nothing falls back to wasm in silence
 */
export function openRuntime(provider = "wasm") {
  if (!PROVIDERS.includes(provider)) {
    throw new RangeError(`provider is ${JSON.stringify(provider)}, expected one of ${PROVIDERS.join(", ")}`);
  }
  if (!opened.has(provider)) {
    const made = open(provider);
    opened.set(provider, made);
    made.catch(() => opened.delete(provider)); // it may be asked again
  }
  return opened.get(provider);
}

async function open(provider) {
  const adapter = provider === "webgpu" ? await findAdapter() : null;
  const ort = await BUILDS[provider]();
  // More threads would need a cross-origin isolated page.
  ort.env.wasm.numThreads = 1;
  return new Runtime(ort, provider, adapter);
}

async function findAdapter() {
  const gpu = globalThis.navigator?.gpu;
  if (!gpu) throw new UnusableWebGPU("there is no WebGPU here");
  const adapter = await gpu.requestAdapter();
  if (!adapter) throw new UnusableWebGPU("WebGPU finds no graphics processor here");
  return adapter;
}

class Runtime {
  #last = Promise.resolve();
  #listener = null;
  #started = false;

  constructor(ort, provider, adapter) {
    this.ort = ort;
    this.provider = provider;
    this.adapter = adapter && { vendor: adapter.info.vendor, architecture: adapter.info.architecture };
  }

  get isGPU() {
    return this.provider === "webgpu";
  }

  /**
   * A session for a graph.
   * @param {Uint8Array} graph
   * @param {{path: string, data: Uint8Array}[]} externalData weights
   * @param {string[]} kept outputs that stay on the device, where there is one
   */
  async createSession(graph, externalData, kept = []) {
    const own = await this.#create(graph, { ...this.#options(kept), externalData });
    return new Session(own, this.ort, this.isGPU ? await this.ort.env.webgpu.device : null);
  }

  /**
   * Where a graph's nodes are computed, by ONNX Runtime's own account: it says so in its log while a session is made.
   * @returns {Promise<{nodes: number, device: Object<string, string[]>, cpu: Object<string, string[]>}>} how many there are, with
   *   those that copy from one to the other, and names by operator
   */
  async listPlacement(graph, externalData) {
    if (!this.isGPU) throw new RangeError(`provider is ${this.provider}, which computes all on the CPU; expected webgpu`);
    const found = { nodes: 0, device: {}, cpu: {} };
    let where = null;
    const listener = (line) => {
      const group = /placed on \[(\w+)\]\. Number of nodes: ([0-9]+)/.exec(line);
      const node = /VerifyEachNodeIsAssignedToAnEp\]\s+(\S+) \((.*)\)$/.exec(line);
      if (group) {
        found.nodes += Number(group[2]);
        where = group[1].startsWith("CPU") ? found.cpu : found.device;
      } else if (node) {
        (where[node[1]] ??= []).push(node[2]);
      }
    };
    const session = await this.#create(graph, { ...this.#options([]), externalData, logSeverityLevel: VERBOSE }, listener);
    await session.release();
    if (!found.nodes) throw new Error("ONNX Runtime's log does not say where nodes are computed; nothing is known of it");
    return found;
  }

  #options(kept) {
    if (!this.isGPU) return { executionProviders: ["wasm"] };
    const preferredOutputLocation = Object.fromEntries(kept.map((name) => [name, "gpu-buffer"]));
    return { executionProviders: ["webgpu"], preferredOutputLocation, logSeverityLevel: ERROR };
  }

  /** Sessions are made one after another: weights are handed over through one table of the runtime's. */
  #create(graph, options, listener = null) {
    const made = this.#last.then(async () => {
      this.#listener = listener;
      try {
        return await this.#listening(() => this.ort.InferenceSession.create(graph, options));
      } finally {
        this.#listener = null;
      }
    });
    this.#last = made.catch(() => {});
    return made;
  }

  /** The runtime takes the console's functions when it starts, with the first session: it is given such as hear what it logs. */
  async #listening(create) {
    if (this.#started) return create();
    const own = { log: console.log, error: console.error };
    for (const [kind, write] of Object.entries(own)) {
      console[kind] = (...words) => (this.#listener ? this.#listener(words.join(" ")) : write.apply(console, words));
    }
    try {
      const session = await create();
      this.#started = true;
      return session;
    } finally {
      Object.assign(console, own);
    }
  }
}

/** A graph that can be run, with what makes its tensors, and a count of the bytes that it took and gave. */
class Session {
  #own;
  #ort;
  #device;

  constructor(own, ort, device) {
    this.#own = own;
    this.#ort = ort;
    this.#device = device;
    /** Bytes of JavaScript's memory that all runs took, and gave. */
    this.bytes = { in: 0, out: 0 };
  }

  get inputNames() {
    return this.#own.inputNames;
  }

  tensor(type, values, shape) {
    return new this.#ort.Tensor(type, values, shape);
  }

  floats(values, ...shape) {
    return this.tensor("float32", values, shape);
  }

  integers(values, ...shape) {
    return this.tensor("int64", BigInt64Array.from(values, BigInt), shape);
  }

  /** Zeros that are state: on the device, where there is one. They are to be disposed. */
  zeros(...shape) {
    const size = shape.reduce((a, b) => a * b);
    if (!this.#device) return this.floats(new Float32Array(size), ...shape);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
    // The runtime copies 16 bytes at a time.
    const buffer = this.#device.createBuffer({ size: Math.ceil((4 * size) / 16) * 16, usage });
    return this.#ort.Tensor.fromGpuBuffer(buffer, { dataType: "float32", dims: shape, dispose: () => buffer.destroy() });
  }

  /**
   * @param feeds tensors by the names of inputs
   * @param inPlace outputs that go into tensors of `feeds` on the device: names of inputs by those of outputs. The runtime for the
   *   CPU makes new ones
   * @returns {Promise<object>} tensors by the names of all outputs
   */
  async run(feeds, inPlace = {}) {
    const fetches = Object.fromEntries(this.#own.outputNames.map((name) => [name, null]));
    if (this.#device) for (const [output, input] of Object.entries(inPlace)) fetches[output] = feeds[input];
    const found = await this.#own.run(feeds, fetches, ERRORS_ONLY).catch((error) => {
      if (!/requires f16/.test(error.message)) throw error;
      throw new UnusableWebGPU("the bundle's weights are in half precision, which this graphics processor has no shaders for");
    });
    this.bytes.in += count(feeds);
    this.bytes.out += count(found);
    return found;
  }

  release() {
    return this.#own.release();
  }
}

/** Bytes of the tensors that are not on the device. */
function count(tensors) {
  const sizes = Object.values(tensors).map((tensor) => (tensor.location === "cpu" ? tensor.data.byteLength : 0));
  return sizes.reduce((a, b) => a + b, 0);
}
