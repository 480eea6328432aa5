/** Serve the page on localhost, and nothing but what it needs: node serve.mjs [--port N] [--bundle NAME] */

import { createReadStream } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { bundleFolder } from "./folder.mjs";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const RUNTIME = path.join(HERE, "node_modules", "onnxruntime-web", "dist");
const PAGE = ["index.html", "page.js", "panel.js", "player.js", "tree.js", "style.css"];
const CORE = ["bundle.js", "decoder.js", "drafting.js", "errors.js", "philox.js", "pixels.js", "runtime.js", "step.js", "trees.js"];
const WASM = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
const WEBGPU = ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"];

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".mjs": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
};

/** URL path to file. Every path that is not in it is refused. */
async function routes(bundle) {
  const manifest = JSON.parse(await readFile(path.join(bundle, "manifest.json"), "utf8"));
  const table = new Map([["/", path.join(HERE, "index.html")]]);
  const add = (prefix, folder, names) => names.forEach((name) => table.set(prefix + name, path.join(folder, name)));
  add("/", HERE, PAGE);
  add("/core/", path.join(HERE, "core"), CORE);
  add("/ort/", RUNTIME, [...WASM, ...WEBGPU]);
  const files = Object.keys(manifest.files).filter((name) => path.basename(name) === name);
  add("/bundle/", bundle, ["manifest.json", ...files]);
  return table;
}

async function answer(table, request, response) {
  const file = table.get(new URL(request.url, "http://localhost").pathname);
  if (!["GET", "HEAD"].includes(request.method)) return response.writeHead(405, { Allow: "GET, HEAD" }).end();
  if (!file) return response.writeHead(404).end("not found\n");
  const type = TYPES[path.extname(file)] ?? "application/octet-stream";
  const { size } = await stat(file);
  response.writeHead(200, { "Content-Type": type, "Content-Length": size, "Cache-Control": "no-cache" });
  if (request.method === "HEAD") return response.end();
  await pipeline(createReadStream(file), response);
}

async function main() {
  const options = { port: { type: "string", default: "8080" }, bundle: { type: "string", default: "fashion" } };
  const { values } = parseArgs({ options });
  const table = await routes(bundleFolder(values.bundle));
  await stat(path.join(RUNTIME, WASM[0])).catch(() => {
    throw new Error("onnxruntime-web is not installed: npm ci");
  });
  const server = http.createServer((request, response) => {
    answer(table, request, response).catch((error) => {
      // A reader that went away is no news.
      if (error.code !== "ERR_STREAM_PREMATURE_CLOSE") console.error(`${request.url}: ${error.message}`);
      if (!response.headersSent) response.writeHead(500);
      response.end();
    });
  });
  server.on("error", (error) => {
    console.error(`serve.mjs: ${error.message}; try another --port`);
    process.exitCode = 1;
  });
  server.listen(Number(values.port), "127.0.0.1", () => console.log(`http://localhost:${server.address().port}/`));
}

try {
  await main();
} catch (error) {
  console.error(`serve.mjs: ${error.message}`);
  process.exitCode = 1;
}
