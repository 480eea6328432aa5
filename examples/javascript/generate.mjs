/** Generate one picture or clip with a bundle's step graph: node generate.mjs --help */

import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { openBundle } from "./core/bundle.js";
import { decode } from "./core/decoder.js";
import { BundleError, UnusableLogits } from "./core/errors.js";
import { drawFrames } from "./core/pixels.js";
import { bundleFolder, folderReader } from "./folder.mjs";
import { png } from "./png.mjs";

const USAGE = `usage: node generate.mjs [options]

  --bundle NAME       fashion, the default, or moving, which makes clips; or a bundle's folder
  --prompt NAME       name or alias of a prompt; default: the first
  --method NAME       ar, sjd, scd-maximal, scd-gumbel or scd-match
  --window N          slots of a forward pass
  --branches N        how many of these are for branches, with scd-match
  --drafting RULE     repeat or copy:LAG
  --temperature T     0 is greedy
  --seed N            integer in [0, 2^64), default 0
  --sequence N        which sequence of the seed, default 0
  --out FILE.png      write the picture; a clip is an animated PNG
  --zoom N            size of a pixel in it, default 8
  --fps N             frames of a clip in a second, 1 to 60, default 8
  --json              print tokens, committed_per_step and figures as JSON

What is not given is the bundle's own default.`;

const text = { type: "string" }, flag = { type: "boolean" };
const OPTIONS = {
  ...{ bundle: text, prompt: text, method: text, window: text, branches: text, drafting: text },
  ...{ temperature: text, seed: text, sequence: text, out: text, zoom: text, fps: text, json: flag, help: flag },
};

function number(name, value) {
  if (value === undefined) return undefined;
  if (!/^[0-9]+(\.[0-9]+)?$/.test(value)) throw new RangeError(`${name} is ${JSON.stringify(value)}, expected a number`);
  return Number(value);
}

/** Seeds go beyond what a number holds exactly. */
function bigInteger(name, value) {
  if (!/^[0-9]+$/.test(value)) throw new RangeError(`${name} is ${JSON.stringify(value)}, expected an integer >= 0`);
  return BigInt(value);
}

async function main() {
  const { values } = parseArgs({ options: OPTIONS });
  if (values.help) return console.log(USAGE);
  const bundle = await openBundle(folderReader(bundleFolder(values.bundle ?? "fashion"))), { manifest } = bundle;
  const method = values.method ?? manifest.defaults.method, promptName = values.prompt ?? Object.keys(manifest.prompts)[0];
  const zoom = number("zoom", values.zoom) ?? 8;
  if (!Number.isInteger(zoom) || zoom < 1) throw new RangeError(`zoom is ${zoom}, expected an integer >= 1`);
  const fps = number("fps", values.fps) ?? 8;
  if (!Number.isInteger(fps) || fps < 1 || fps > 60) throw new RangeError(`fps is ${fps}, expected an integer from 1 to 60`);
  const window = number("window", values.window);
  const branches = number("branches", values.branches) ?? bundle.usualBranches(method, window);
  const settings = {
    method,
    prompt: bundle.findPrompt(promptName),
    window,
    branches,
    drafting: values.drafting,
    temperature: number("temperature", values.temperature),
    seed: bigInteger("seed", values.seed ?? "0"),
    sequence: bigInteger("sequence", values.sequence ?? "0"),
  };
  if (values.out && !manifest.pixel_graph) throw new BundleError("this bundle makes no pictures; leave out --out");

  const session = await bundle.openStep(method, branches), committedPerStep = [];
  let last, milliseconds = 0;
  for await (last of decode(bundle, session, settings)) {
    committedPerStep.push(last.committed);
    milliseconds += last.milliseconds;
  }
  if (values.out) {
    const frames = await drawFrames(await bundle.openPixels(), manifest, last.tokens);
    await writeFile(values.out, png(frames, manifest.pixel_graph, zoom, fps));
  }
  const { tokens, nfe } = last;
  if (values.json) {
    console.log(JSON.stringify({ prompt: promptName, method, tokens, committed_per_step: committedPerStep, milliseconds }));
  } else {
    const rate = (tokens.length / nfe).toFixed(2), time = (milliseconds / 1000).toFixed(2);
    console.log(`${method}: ${tokens.length} tokens in ${nfe} steps, ${rate} tokens per step, ${time} s`);
    if (values.out) console.log(`wrote ${values.out}`);
  }
}

try {
  await main();
} catch (error) {
  // Bad arguments, bundles and models are the caller's to mend and need no stack.
  const ours = [RangeError, BundleError, UnusableLogits].some((kind) => error instanceof kind);
  const expected = ours || error.code?.startsWith("ERR_PARSE_ARGS");
  console.error(`generate.mjs: ${expected || error.syscall ? error.message : error.stack}`);
  process.exitCode = 1;
}
