/** A bundle's folder on disk. */

import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { BundleError } from "./core/errors.js";

/** The model that the library ships. */
export const EMBEDDED = fileURLToPath(new URL("../../coupled_sampling/bundles/models/fashion/", import.meta.url));

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
