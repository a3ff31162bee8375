// A real browser for a person at the playground page, without a screen, a network or a microphone of its own.

import { createRequire } from "node:module";

const require = createRequire(new URL("../../deploy/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

const OFFLINE = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

/** Opens a page, does something there, and says as one line of JSON what was seen and what the page complained of. */
export async function visit(executablePath, address, act, { args = [], before } = {}) {
  const browser = await chromium.launch({
    executablePath,
    chromiumSandbox: process.getuid() !== 0, // Chromium refuses to run as root with it
    args: [...OFFLINE, "--disable-component-update", "--disable-sync", ...args],
  });
  try {
    const page = await browser.newPage({ viewport: { width: 1160, height: 980 }, colorScheme: "light" });
    page.setDefaultTimeout(60_000);
    const complaints = [];
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    if (before) await page.addInitScript(before);
    await page.goto(address);
    const seen = await act(page);
    console.log(JSON.stringify({ ...seen, complaints }));
  } finally {
    await browser.close();
  }
}

export async function fill(page, fields) {
  for (const [name, value] of Object.entries(fields)) await page.fill(`#${name}`, value);
}

/** A part of the panel of the mode that is shown. */
export function part(name) {
  return `.panel:not([hidden]) [data-part=${name}]`;
}

/** What became of each stage, by its name: in a word, and in the page's own. */
export async function stages(page) {
  const items = await page.locator(`${part("stages")} li`).all();
  const told = items.map(async (item) => [
    await item.evaluate((each) => each.firstChild.textContent),
    { became: await item.getAttribute("class"), words: await item.locator("small").textContent() },
  ]);
  return Object.fromEntries(await Promise.all(told));
}
