/** What is wrong with a bundle, for people. */
export class BundleError extends Error {
  name = "BundleError";
}
