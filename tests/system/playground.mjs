// A person at the playground page, in a real browser: node playground.mjs CHROMIUM PAGE PICTURE FOLDER
//
// Animates the picture, asks for the same again, asks for something impossible, cancels something long. Says as one line
// of JSON what was to be seen, and leaves screenshots in FOLDER.

import { join } from "node:path";

import { fill, part, stages, visit } from "./chromium.mjs";

const [browser, address, picture, folder] = process.argv.slice(2);

async function act(page) {
  await page.setInputFiles("#picture", picture);
  await page.fill("#prompt", "the sky darkens and the clouds begin to drift");
  await page.click("summary");
  await fill(page, { width: "256", height: "160", numFrames: "8", numInferenceSteps: "8", seed: "1" });

  const seen = { steps: await stepsOf(page, () => page.click("#ask"), "during.png") };
  seen.first = await answer(page);
  await page.click("#ask");
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 2);
  seen.second = await answer(page);
  seen.history = await page.locator("#rows tr").count();
  await page.screenshot({ path: join(folder, "after.png"), fullPage: true });

  await page.fill("#width", "70");
  await page.click("#ask");
  seen.problem = await page.locator(`${part("problem")}:not([hidden])`).textContent();

  await fill(page, { width: "256", numFrames: "16", numInferenceSteps: "50", seed: "2" });
  await page.click("#ask");
  await page.waitForFunction((line) => document.querySelector(line).textContent.startsWith("denoise"), part("doing"));
  await page.click("#cancel");
  await page.waitForSelector("#ask:not([disabled])");
  seen.cancelled = await page.locator(part("doing")).textContent();
  return seen;
}

/** What the line above the answer said until the answer was there; a picture is taken at the first preview. */
async function stepsOf(page, act, screenshot) {
  await page.evaluate((line) => {
    window.said = [];
    const watch = new MutationObserver(() => window.said.push(document.querySelector(line).textContent));
    watch.observe(document.querySelector(line), { childList: true });
  }, part("doing"));
  await act();
  await page.waitForSelector("#preview:not([hidden])");
  await page.screenshot({ path: join(folder, screenshot), fullPage: true });
  await page.waitForSelector(`${part("answer")}:not([hidden])`);
  return page.evaluate(() => window.said);
}

async function answer(page) {
  const plays = () => document.querySelector("#video").currentTime > 0.05;
  await page.waitForFunction(plays);
  const { width, height } = await page.evaluate(() => {
    const { videoWidth, videoHeight } = document.querySelector("#video");
    return { width: videoWidth, height: videoHeight };
  });
  return {
    outcome: await page.locator(part("outcome")).textContent(),
    stages: Object.fromEntries(Object.entries(await stages(page)).map(([name, { became }]) => [name, became])),
    notice: await page.locator(part("notice")).isVisible(),
    width,
    height,
  };
}

await visit(browser, address, act);
