/** A bundle's folder on disk. */

import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { BundleError } from "./core/errors.js";

const MODELS = fileURLToPath(new URL("../../coupled_sampling/bundles/models/", import.meta.url));

/** The folder of a bundle: of a model that the library ships, by its name, which wins over a folder; else `bundle` itself. */
export function bundleFolder(bundle) {
  const shipped = path.join(MODELS, bundle);
  return path.basename(bundle) === bundle && existsSync(path.join(shipped, "manifest.json")) ? shipped : bundle;
}

/** A function from the name of a file in `folder` to its bytes. */
export function folderReader(folder) {
  return async (name) => {
    if (path.basename(name) !== name) throw new BundleError(`file name ${name} is not plain`);
    try {
      return new Uint8Array(await readFile(path.join(folder, name)));
    } catch (error) {
      throw new BundleError(`cannot read ${path.join(folder, name)}: ${error.code}; name the folder of a bundle`);
    }
  };
}
