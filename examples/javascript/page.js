/** The page: reads the controls, runs `ar` and another method step by step side by side, and shows both. */

import { openBundle } from "./core/bundle.js";
import { decode } from "./core/decoder.js";
import { Panel } from "./panel.js";
import { isPaused, pause } from "./player.js";

const find = (id) => document.getElementById(id);
const controls = ["prompt", "method", "window", "seed", "draw", "another"].map(find); // branches by method
const WINDOW_OF_TREES = 64; // where there can be branches, and nobody chose otherwise
const parameters = new URLSearchParams(location.search);
const provider = parameters.get("provider") ?? "wasm";

let bundle, panels, run = 0;
const sessions = new Map(), chosen = new Map(parameters);

/** A file of the bundle's folder, `bundle/` beside the page. */
async function read(name) {
  const response = await fetch(new URL(name, new URL("bundle/", document.baseURI)));
  if (!response.ok) throw new Error(`cannot fetch bundle/${name}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

function fail(error) {
  console.error(error);
  find("failure").textContent = `This did not work: ${error.message}`;
  find("failure").hidden = false;
  find("status").textContent = "";
}

/** A session is made once per method, and once more for branches. */
function session(method, branches) {
  const key = `${method} ${branches > 0}`;
  if (!sessions.has(key)) {
    const made = bundle.openStep(method, branches);
    sessions.set(key, made);
    made.catch(() => sessions.delete(key));
  }
  return sessions.get(key);
}

const nextFrame = () => new Promise((resolve) => requestAnimationFrame(resolve));

/** Draw by `ar` and by the chosen method, a step of each per frame, until both are done or another run begins. */
async function draw() {
  const own = ++run, method = find("method").value, prompt = find("prompt").value, seed = find("seed").value;
  const window = Number(find("window").value), branches = [0, chosenBranches()], current = () => own === run;
  find("failure").hidden = true;
  if (!/^[0-9]+$/.test(seed) || BigInt(seed) >= 1n << 64n) throw new Error(`the seed is "${seed}", expected an integer >= 0`);
  find("status").textContent = "Loading the step graph …";
  const methods = ["ar", method], opened = await Promise.all(methods.map((name, i) => session(name, branches[i])));
  if (!current()) return;

  const title = bundle.manifest.prompts[prompt].title, settings = { prompt: bundle.findPrompt(prompt), window };
  find("coupled-tokens-title").textContent = method;
  panels.forEach((panel, i) => panel.clear(methods[i], title, window, branches[i]));
  find("tree-legend").hidden = !branches[1];
  for (const id of ["ar-tokens", "coupled-tokens"]) find(id).textContent = "";
  find("status").textContent = `Drawing: ${title}, seed ${seed} …`;
  const streams = methods.map((name, i) =>
    decode(bundle, opened[i], { ...settings, method: name, branches: branches[i], seed: BigInt(seed) }),
  );
  const last = [];
  try {
    while (!last.every((state) => state.finished) || !last.length) {
      for (const [i, stream] of streams.entries()) {
        if (last[i]?.finished) continue;
        last[i] = (await stream.next()).value;
        if (!current()) return;
        await panels[i].show(last[i]);
        find(i ? "coupled-tokens" : "ar-tokens").textContent = last[i].tokens.join(" ");
      }
      await nextFrame();
      if (!current()) return;
    }
  } finally {
    for (const stream of streams) stream.return(); // its state is let go
  }
  const [ar, coupled] = last.map((state) => state.nfe);
  find("status").textContent =
    `Done: ${title}, seed ${seed}. ar took ${ar} steps, ${method} ${coupled}: ${(ar / coupled).toFixed(2)} times fewer.`;
}

function start() {
  draw().catch(fail);
}

/** Those of the slider, which says nothing for methods that take none. */
function chosenBranches() {
  return find("branches").disabled ? 0 : Number(find("branches").value);
}

/** Show the window, and in it the branches: as many as suit its width if the visitor chose no number, 24 of 64. */
function showWindow() {
  const window = Number(find("window").value), branches = find("branches");
  branches.max = Math.max(0, window - 2); // one slot is for a known token, and one for a draft to stand beside
  if (!chosen.has("branches")) branches.value = Math.max(0, Math.round(0.55 * (window - 20)));
  branches.disabled = window < 3 || !bundle.takesBranches(find("method").value);
  find("window-value").textContent = window;
  find("branches-value").textContent = chosenBranches();
}

/** Where the visitor chose no window, one that suits the method. */
function suit() {
  const hasTrees = bundle.takesBranches(find("method").value);
  if (!chosen.has("window")) find("window").value = hasTrees ? WINDOW_OF_TREES : bundle.manifest.defaults.window;
  showWindow();
}

/** Another provider is another runtime: the page begins anew with it, with what the visitor chose. */
function change() {
  const wanted = new URLSearchParams([...chosen]);
  wanted.set("provider", find("provider").value);
  if (bundle) for (const id of ["prompt", "method", "seed"]) wanted.set(id, find(id).value);
  location.search = wanted;
}

/** List, by operator, how many nodes of both step graphs the device leaves to the CPU. */
async function showPlacement() {
  const asked = [["ar", 0], [find("method").value, chosenBranches()]], list = find("placement-list");
  list.replaceChildren();
  for (const [method, branches] of asked) {
    const { nodes, cpu } = await bundle.listPlacement(method, branches), item = document.createElement("li");
    const operators = Object.entries(cpu).map(([operator, { length }]) => `${operator} ${length}`).sort();
    item.textContent = `${method}: ${Object.values(cpu).flat().length} of ${nodes} nodes: ${operators.join(", ")}`;
    list.append(item);
  }
}

function sayPaused() {
  find("pause").textContent = isPaused() ? "Play" : "Pause";
}

/** Fill the controls from the manifest, then from the page's address. */
function fillControls() {
  const { prompts, defaults, window_graph } = bundle.manifest;
  find("prompt").replaceChildren(...Object.entries(prompts).map(([name, { title }]) => new Option(title, name)));
  find("method").replaceChildren(...bundle.methods.filter((name) => name !== "ar").map((name) => new Option(name)));
  find("window").max = Math.min(64, window_graph.max_window);
  const wanted = { prompt: Object.keys(prompts)[0], method: bundle.methods.find((name) => bundle.takesBranches(name)) };
  wanted.method ??= defaults.method;
  for (const [name, value] of Object.entries({ ...wanted, seed: "0" })) find(name).value = parameters.get(name) ?? value;
  for (const name of ["window", "branches"]) if (chosen.has(name)) find(name).value = chosen.get(name);
  suit();
  for (const control of controls) control.disabled = false;
}

async function main() {
  find("provider").value = provider;
  find("provider").disabled = false;
  find("provider").addEventListener("change", change);
  bundle = await openBundle(read, { provider });
  const { manifest } = bundle;
  if (!manifest.pixel_graph || !manifest.grid) throw new Error("this bundle makes no pictures; use generate.mjs for its tokens");
  if (!bundle.methods.includes("ar") || bundle.methods.length < 2) throw new Error("this bundle lacks step graphs to compare");
  const pixels = await bundle.openPixels();
  find("drawing").hidden = false;
  panels = ["ar", "coupled"].map((id) => new Panel(find(id), manifest, pixels));
  fillControls();
  find("prompt-label").textContent = manifest.pixel_graph.frames ? "Clip of" : "Picture of";
  find("pause").hidden = !manifest.pixel_graph.frames;
  find("placement").hidden = !bundle.runtime.isGPU;
  find("placement").addEventListener("toggle", () => find("placement").open && showPlacement().catch(fail));
  sayPaused();
  find("pause").addEventListener("click", () => {
    pause(!isPaused());
    sayPaused();
  });
  find("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  find("another").addEventListener("click", () => {
    const seed = find("seed").value;
    find("seed").value = /^[0-9]+$/.test(seed) ? String(BigInt(seed) + 1n) : "0";
    start();
  });
  for (const id of ["window", "branches"]) {
    find(id).addEventListener("input", () => {
      chosen.set(id, find(id).value);
      showWindow();
    });
  }
  find("method").addEventListener("change", suit);
  for (const id of ["prompt", "method", "window", "branches", "seed"]) find(id).addEventListener("change", start);
  start();
}

main().catch(fail);
