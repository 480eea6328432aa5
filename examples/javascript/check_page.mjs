/**
 * Open the served page in headless Chromium and print, as JSON, what a visitor finds:
 * node check_page.mjs URL CHROMIUM [SCREENSHOT.png]
 */

import { chromium } from "playwright-core";

const [url, executablePath, screenshot] = process.argv.slice(2);
const TIMEOUT = 120_000;

/** Wait until both pictures are drawn, or a failure is shown. */
async function settled(page, wantsPicture = false) {
  await page.waitForFunction(
    () => document.querySelector("#status").textContent.startsWith("Done") || !document.querySelector("#failure").hidden,
    null,
    { timeout: TIMEOUT },
  );
  return page.evaluate((wantsPicture) => {
    const text = (selector) => document.querySelector(selector)?.textContent ?? "";
    const numbers = (selector) => text(selector).split(" ").filter(Boolean).map(Number);
    const grey = (selector) => {
      const canvas = document.querySelector(selector);
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return { width: canvas.width, height: canvas.height, values: Array.from(data).filter((_, i) => i % 4 === 0) };
    };
    return {
      status: text("#status"),
      failure: text("#failure"),
      window: text("#window-value"),
      branches: text("#branches-value"),
      drafts: [...document.querySelectorAll(".drafts")].map((own) => (own.hidden ? "" : own.querySelector("h3").textContent)),
      ar: numbers("#ar-tokens"),
      coupled: numbers("#coupled-tokens"),
      steps: [text("#ar .steps"), text("#coupled .steps")],
      rates: [text("#ar .rate"), text("#coupled .rate")],
      picture: wantsPicture ? grey("#coupled canvas") : null,
    };
  }, wantsPicture);
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage(), errors = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(error.message));
  await page.goto(url);
  const first = await settled(page, true);

  const unnamed = await page.evaluate(() => {
    const controls = [...document.querySelectorAll("select, input, button, canvas, progress")];
    const named = (x) => x.labels?.length || x.getAttribute("aria-label") || x.textContent.trim();
    return controls.filter((control) => !named(control)).map((control) => control.outerHTML);
  });
  // By keyboard alone: from the seed on to the window, one slot more.
  await page.focus("#seed");
  await page.keyboard.press("Tab");
  await page.keyboard.press("ArrowRight");
  const second = await settled(page);

  // As it opens, with branches.
  const plain = await browser.newPage();
  plain.on("pageerror", (error) => errors.push(error.message));
  await plain.goto(new URL("?prompt=bag&seed=5", url).href);
  const trees = await settled(plain);
  if (screenshot) await plain.screenshot({ path: screenshot, fullPage: true });
  trees.colours = await plain.evaluate(() => {
    const canvas = document.querySelector("#coupled .tree");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  });

  const broken = await browser.newPage();
  await broken.route("**/weights.bin", (route) => route.fulfill({ status: 200, body: "damaged" }));
  await broken.goto(url);
  const { failure } = await settled(broken);
  console.log(JSON.stringify({ first, second, trees, failure, errors, unnamed }));
} finally {
  await browser.close();
}
