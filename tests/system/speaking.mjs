// A person who speaks at the playground page, in a real browser: node speaking.mjs CHROMIUM PAGE VOICE FOLDER
//
// Has a paragraph spoken, asks for the same again, edits a sentence, asks for something impossible, cancels something
// long, speaks into the microphone, which hears the same VOICE, and opens the page where there is none to be had. Says
// as one line of JSON what was to be seen, and leaves screenshots, what was heard (heard.s16) and what was saved
// (saved.wav) in FOLDER.

import { readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";

import { fill, part, stages, visit } from "./chromium.mjs";

const [browser, address, voice, folder] = process.argv.slice(2);
const LINE = "The rain had stopped, and the street was quiet.";
const LAMP = "A lamp went out above the bridge.";
const LAUGH = "Then somebody laughed.";
const ELSEWHERE = "playground.example"; // this machine by another name, to which no browser gives a microphone
const ARGUMENTS = [
  `--host-resolver-rules=MAP ${ELSEWHERE} 127.0.0.1`,
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
  `--use-file-for-fake-audio-capture=${voice}`,
];

/** Keeps what is sent to the loudspeakers, and when it is due. */
function overhear() {
  window.heard = [];
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (when) {
    const { length, sampleRate } = this.buffer;
    const samples = Int16Array.from(this.buffer.getChannelData(0), (value) => Math.round(value * 32768));
    window.heard.push({ when, seconds: length / sampleRate, samples, rates: [sampleRate, this.context.sampleRate] });
    start.call(this, when);
  };
}

async function act(page) {
  const seen = {};
  await page.click('a[href="#speak"]');
  seen.hash = new URL(page.url()).hash;
  await page.fill("#text", LINE);
  await page.click("#ask");
  seen.voiceless = await page.locator(`${part("problem")}:not([hidden])`).textContent();
  await drop(page, "#voiceDrop", voice);
  await page.waitForFunction(() => document.querySelector("#voiceName").textContent.includes(","));
  seen.voice = await page.locator("#voiceName").textContent();
  await page.waitForFunction(() => document.querySelector("#voiceReplay").duration > 0);
  seen.replay = await page.evaluate(() => document.querySelector("#voiceReplay").duration);
  await page.click("summary");
  await fill(page, { text: [LINE, LAMP, LAUGH].join(" "), seed: "1" });

  seen.steps = await said(page, () => page.click("#ask"));
  await page.click("#hush"); // it is longer than its making
  seen.first = await answer(page);
  seen.first.heard = await heard(page);
  await page.screenshot({ path: join(folder, "speaking.png"), fullPage: true });
  await page.click("#sentences button >> nth=1");
  await page.waitForFunction(() => document.querySelector("#speech").currentTime > 1); // past the first one

  await again(page, 2);
  seen.second = await answer(page);
  await page.fill("#text", [LINE, "A lamp went out behind the old bridge.", LAUGH].join(" "));
  await again(page, 3);
  seen.edited = await answer(page);
  await page.evaluate(() => new Promise(requestAnimationFrame)); // it is drawn with the next picture
  await page.screenshot({ path: join(folder, "edited.png"), fullPage: true });

  await page.fill("#text", "...");
  await page.click("#ask");
  seen.problem = await page.locator(`${part("problem")}:not([hidden])`).textContent();

  const lamps = Array.from({ length: 60 }, (_, n) => `Lamp ${n + 1} went out above the bridge, and nobody saw it.`);
  await page.fill("#text", lamps.join(" "));
  await page.click("#ask");
  await page.waitForFunction(() => window.heard.length > 2 && document.querySelector("#wave:not([hidden])"));
  await page.screenshot({ path: join(folder, "making.png"), fullPage: true });
  await page.click("#cancel");
  await page.waitForSelector("#ask:not([disabled])");
  seen.cancelled = await page.locator(part("doing")).textContent();
  seen.stillSounds = await page.locator("#hush").isVisible();

  await page.click("#record");
  await page.waitForFunction(() => document.querySelector("#recordLabel").textContent.startsWith("Stop, 2."));
  await page.click("#record");
  await page.waitForFunction(() => document.querySelector("#voiceName").textContent.startsWith("recorded"));
  await page.fill("#text", LINE);
  await page.uncheck("#hear");
  await page.waitForFunction(() => document.querySelector("#voiceName").textContent.includes(","));
  seen.recorded = await page.locator("#voiceName").textContent();
  await again(page, 4);
  seen.own = await answer(page);

  await page.check("#hear");
  await page.selectOption("#soundFormat", "ogg");
  await again(page, 5);
  seen.ogg = await answer(page);
  await page.waitForFunction(() => document.querySelector("#speech").currentTime > 0.05); // it plays by itself
  await page.click('a[href="#animate"]');
  await page.waitForFunction(() => document.querySelector('[data-mode="animate"]:not([hidden])'));
  seen.modes = await page
    .locator("[data-mode]:not([hidden])")
    .evaluateAll((parts) => parts.map((each) => each.dataset.mode));
  await page.setViewportSize({ width: 390, height: 800 });
  await page.click('a[href="#speak"]');
  await page.screenshot({ path: join(folder, "narrow.png"), fullPage: true });
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);

  await page.goto(`http://${ELSEWHERE}:${new URL(address).port}/#speak`);
  seen.elsewhere = { why: await page.locator("#microphone").textContent(), mayRecord: await page.isEnabled("#record") };
  return seen;
}

/** Lets a file fall onto an element. */
async function drop(page, onto, path) {
  const dataTransfer = await page.evaluateHandle(
    ([name, data]) => {
      const dragged = new DataTransfer();
      dragged.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name));
      return dragged;
    },
    [basename(path), readFileSync(path, "base64")],
  );
  await page.dispatchEvent(onto, "drop", { dataTransfer });
}

/** What the line above the answer said until the answer was there. */
async function said(page, act) {
  await page.evaluate((line) => {
    window.said = [];
    const watch = new MutationObserver(() => window.said.push(document.querySelector(line).textContent));
    watch.observe(document.querySelector(line), { childList: true });
  }, part("doing"));
  await act();
  await page.waitForSelector(`${part("answer")}:not([hidden])`);
  return page.evaluate(() => window.said);
}

async function again(page, rows) {
  await page.evaluate(() => (window.heard = []));
  await page.click("#ask");
  await page.waitForFunction((count) => document.querySelectorAll("#rows tr").length === count, rows);
}

async function answer(page) {
  const facts = await page.evaluate((list) => {
    const terms = [...document.querySelectorAll(`${list} dt`)];
    return Object.fromEntries(terms.map((term) => [term.textContent, term.nextElementSibling.textContent]));
  }, part("facts"));
  return {
    outcome: await page.locator(part("outcome")).textContent(),
    stages: await stages(page),
    facts,
    sentences: await page.locator("#sentences:not([hidden]) li").evaluateAll((items) =>
      items.map((item) => [item.className, parseFloat(item.querySelector("small")?.textContent)]),
    ),
    wave: await page.locator("#wave").getAttribute("aria-label"),
    seconds: await page.evaluate(() => document.querySelector("#speech").duration),
    pieces: await page.evaluate(() => window.heard.length),
  };
}

/** Whether the pieces follow one upon the other, and at which rates; they and the file are left in the folder. */
async function heard(page) {
  const { file, sound, ...told } = await page.evaluate(async (link) => {
    const text = async (blob) => {
      const reader = new FileReader();
      const read = new Promise((resolve) => (reader.onload = resolve));
      reader.readAsDataURL(blob);
      await read;
      return reader.result.split(",")[1];
    };
    const pieces = window.heard;
    const ends = pieces.map(({ when, seconds }) => when + seconds);
    return {
      file: await text(await (await fetch(document.querySelector(link).href)).blob()),
      sound: await text(new Blob(pieces.map(({ samples }) => samples))),
      rates: [...new Set(pieces.flatMap(({ rates }) => rates))],
      overlap: Math.max(...pieces.slice(1).map(({ when }, index) => ends[index] - when)), // seconds
    };
  }, part("save"));
  writeFileSync(join(folder, "saved.wav"), Buffer.from(file, "base64"));
  writeFileSync(join(folder, "heard.s16"), Buffer.from(sound, "base64"));
  return told;
}

await visit(browser, address, act, { args: ARGUMENTS, before: overhear });
