/** The page: reads the controls, asks the server for `ar` and for another method at once, and shows both. */

import { getJson, postForEvents } from "./events.js";
import { imageOf, Panel } from "./panel.js";
import { isPaused, pause } from "./player.js";
import { sheetOf } from "./sheet.js";

const MOST_PARTIALS = 13;
const find = (id) => document.getElementById(id);
const panels = ["ar", "coupled"].map((id) => new Panel(find(id)));

let models = [], running = null;

const chosen = () => models.find((model) => model.id === find("model").value);
const hasNames = (model) => model.makes_pictures && model.prompts.length > 0;

function fail(error) {
  find("failure").textContent = error.message;
  find("failure").hidden = false;
  find("status").textContent = "";
}

/** A whole number from a field. Larger ones than 2**53 - 1 are not exact in JavaScript. */
function whole(id, least, name) {
  const text = find(id).value.trim(), value = Number(text);
  if (!/^[0-9]+$/.test(text) || value < least || !Number.isSafeInteger(value))
    throw new Error(`${name} is "${text}", expected a whole number from ${least} to ${Number.MAX_SAFE_INTEGER}.`);
  return value;
}

/** Ask which models there are, and show the controls for the first one. */
async function load() {
  models = (await getJson("v1/models", find("key").value)).data;
  find("model").replaceChildren(...models.map(({ id }) => new Option(id)));
  find("model-field").hidden = models.length < 2;
  suit();
}

/** Show the controls that the chosen model has a use for. */
function suit() {
  const model = chosen(), names = hasNames(model);
  find("name").replaceChildren(...model.prompts.map((name) => new Option(name)));
  find("name-field").hidden = !names;
  find("name-label").textContent = model.frames ? "Clip of" : "Picture of";
  find("pause").hidden = !model.frames;
  sayPaused();
  find("text-field").hidden = names;
  find("text").required = !names; // a field that is not shown must not hold the form back
  find("length-field").hidden = model.makes_pictures;
  find("length").required = !model.makes_pictures;
  find("text-label").textContent = model.makes_pictures ? "Prompt, as text or as numbers of tokens" : "Text to continue";
}

/** Run one side to its end. */
async function follow(panel, model, asked, signal) {
  const { method, prompt, seed, length, key } = asked, picture = model.makes_pictures;
  const common = { model: model.id, prompt, seed, method, stream: true, acceptance: true };
  panel.clear({ method, prompt, picture, sheet: sheetOf(model), length });
  if (!picture) {
    const body = { ...common, max_tokens: length, return_token_ids: true };
    return followText(panel, postForEvents("v1/completions", key, body, signal));
  }
  // Of a clip every frame, of a picture every row but the last, which it brings itself; fewer of large ones, which take a while to make.
  const partials = model.frames || (model.grid ? Math.min(model.grid[0] - 1, MOST_PARTIALS) : 0);
  const body = { ...common, progress: true, partial_images: partials };
  for await (const event of postForEvents("v1/images/generations", key, body, signal)) {
    if (event.type === "image_generation.tokens") {
      panel.commit(event.tokens, event.passes);
      continue;
    }
    const completed = event.type === "image_generation.completed";
    if (completed && model.frames) {
      panel.play(event.fps); // all of its frames have come
    } else {
      const image = await imageOf(event.b64_json, `image/${event.output_format}`);
      signal.throwIfAborted(); // another run may have the panel by now
      panel.paint(image);
    }
    if (completed) panel.finish(event.acceptance);
  }
}

async function followText(panel, events) {
  for await (const { choices: [choice] } of events) {
    if (!choice) continue; // usage comes without one
    if (choice.token_ids?.length) panel.commit(choice.token_ids, panel.passes + 1); // an event is what a pass committed
    if (choice.text) panel.write(choice.text);
    if (choice.finish_reason) panel.finish(choice.acceptance);
  }
}

/** What both sides gave, in words. */
function verdict(method) {
  const [ar, coupled] = panels, [one, other] = [ar.tokens, coupled.tokens];
  const differs = one.length !== other.length || one.some((token, i) => token !== other[i]);
  const passes = `Done: ${ar.passes} passes by ar, ${coupled.passes} by ${method}, ${(ar.passes / coupled.passes).toFixed(2)} times fewer.`;
  if (!differs) return `${passes} All ${one.length} tokens are identical.`;
  if (!method.endsWith("-match")) return `${passes} The tokens differ, as they may: ${method} has the same law, not the same draws.`;
  return `${passes} The tokens differ, which rounding in the model can cause: two tokens were equally likely to its last digit.`;
}

async function run() {
  running?.abort();
  const own = (running = new AbortController());
  find("failure").hidden = true;
  try {
    const key = find("key").value;
    if (!models.length) await load();
    const model = chosen(), names = hasNames(model), method = find("method").value, seed = whole("seed", 0, "The seed");
    const prompt = names ? find("name").value : find("text").value;
    if (!prompt) throw new Error("There is no prompt: write one, and run again.");
    const length = model.makes_pictures ? model.length : whole("length", 1, "The number of tokens");
    for (const id of ["panels", "legend", "all-tokens"]) find(id).hidden = false;
    find("legend-of-clips").hidden = !model.token_frames;
    find("coupled-tokens-title").textContent = method;
    find("status").textContent = `Running: ${names ? prompt : "your prompt"}, seed ${seed} …`;
    find("stop").disabled = false;
    const sides = ["ar", method].map((name) => ({ method: name, prompt, seed, length, key }));
    await Promise.all(sides.map((asked, i) => follow(panels[i], model, asked, own.signal)));
    ["ar-tokens", "coupled-tokens"].forEach((id, i) => (find(id).textContent = panels[i].tokens.join(" ")));
    if (panels.every((panel) => panel.done)) find("status").textContent = verdict(method);
    else throw new Error("The server stopped before the end.");
  } catch (error) {
    own.abort(); // the other side, too
    if (own === running && error.name !== "AbortError") fail(error);
  } finally {
    if (own === running) find("stop").disabled = true;
  }
}

find("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
find("another").addEventListener("click", () => {
  const seed = find("seed").value.trim();
  find("seed").value = /^[0-9]+$/.test(seed) ? String(BigInt(seed) + 1n) : "0";
  run();
});
find("stop").addEventListener("click", () => {
  running.abort();
  find("status").textContent = "Stopped.";
  find("stop").disabled = true;
});
find("pause").addEventListener("click", () => {
  pause(!isPaused());
  sayPaused();
});
find("model").addEventListener("change", suit);
find("key").addEventListener("change", () => {
  if (models.length) return;
  find("failure").hidden = true;
  load().then(ready, fail);
});

function sayPaused() {
  find("pause").textContent = isPaused() ? "Play" : "Pause";
}

function ready() {
  find("status").textContent = "Ready.";
}

load().then(ready, fail);
