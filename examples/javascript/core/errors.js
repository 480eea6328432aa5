/** What is wrong with a bundle, for people. */
export class BundleError extends Error {
  name = "BundleError";
}

/** A token was to be decided of whose logits no law can be made. */
export class UnusableLogits extends Error {
  name = "UnusableLogits";

  constructor(position, largest) {
    const found = Number.isNaN(largest) ? "NaN" : largest > 0 ? "+inf" : "nothing but -inf";
    super(`logits for position ${position} hold ${found}; expected finite numbers, with -inf only for forbidden tokens`);
  }
}

/** WebGPU was asked for, and this browser or machine has none, or not what the bundle needs. */
export class UnusableWebGPU extends Error {
  name = "UnusableWebGPU";

  constructor(reason) {
    super(`${reason}; use a browser and a machine that have it, or the provider wasm, which computes the same on the CPU`);
  }
}
