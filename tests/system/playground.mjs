// A person at the playground page, in a real browser: node playground.mjs CHROMIUM PAGE PICTURE FOLDER
//
// Animates the picture, asks for the same again, asks for something impossible, cancels something long. Says as one line
// of JSON what was to be seen, and leaves screenshots in FOLDER.

import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(new URL("../../deploy/web/package.json", import.meta.url));
const { chromium } = require("playwright-core");

const [executablePath, address, picture, folder] = process.argv.slice(2);
const OFFLINE = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const browser = await chromium.launch({
  executablePath,
  chromiumSandbox: process.getuid() !== 0, // Chromium refuses to run as root with it
  args: [...OFFLINE, "--disable-component-update", "--disable-sync"],
});

try {
  const page = await browser.newPage({ viewport: { width: 1160, height: 980 }, colorScheme: "light" });
  page.setDefaultTimeout(60_000);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));

  await page.goto(address);
  await page.setInputFiles("#picture", picture);
  await page.fill("#prompt", "the sky darkens and the clouds begin to drift");
  await page.click("summary");
  await fill({ width: "256", height: "160", numFrames: "8", numInferenceSteps: "8", seed: "1" });

  const seen = { steps: await stepsOf(() => page.click("#animate"), "during.png") };
  seen.first = await answer();
  await page.click("#animate");
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 2);
  seen.second = await answer();
  seen.history = await page.locator("#rows tr").count();
  await page.screenshot({ path: join(folder, "after.png"), fullPage: true });

  await page.fill("#width", "70");
  await page.click("#animate");
  seen.problem = await page.locator("#problem:not([hidden])").textContent();

  await fill({ width: "256", numFrames: "16", numInferenceSteps: "50", seed: "2" });
  await page.click("#animate");
  await page.waitForFunction(() => document.querySelector("#doing").textContent.startsWith("denoise"));
  await page.click("#cancel");
  await page.waitForSelector("#animate:not([disabled])");
  seen.cancelled = await page.locator("#doing").textContent();
  console.log(JSON.stringify({ ...seen, complaints }));

  async function fill(fields) {
    for (const [name, value] of Object.entries(fields)) await page.fill(`#${name}`, value);
  }

  /** What the line above the video said until the video was there; a picture is taken at the second preview. */
  async function stepsOf(act, screenshot) {
    await page.evaluate(() => {
      window.said = [];
      const watch = new MutationObserver(() => window.said.push(document.querySelector("#doing").textContent));
      watch.observe(document.querySelector("#doing"), { childList: true });
    });
    await act();
    await page.waitForSelector("#preview:not([hidden])");
    await page.screenshot({ path: join(folder, screenshot), fullPage: true });
    await page.waitForSelector("#answer:not([hidden])");
    return page.evaluate(() => window.said);
  }

  async function answer() {
    const plays = () => document.querySelector("#video").currentTime > 0.05;
    await page.waitForFunction(plays);
    return page.evaluate(() => ({
      outcome: document.querySelector("#outcome").textContent,
      stages: Object.fromEntries(
        [...document.querySelectorAll("#stages li")].map((item) => [item.firstChild.textContent, item.className]),
      ),
      width: document.querySelector("#video").videoWidth,
      height: document.querySelector("#video").videoHeight,
      notice: !document.querySelector("#notice").hidden,
    }));
  }
} finally {
  await browser.close();
}
