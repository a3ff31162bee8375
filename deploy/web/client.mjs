// Reprise by grpc-web from a terminal: every event as a line of JSON with the milliseconds since the start.
//
//   node client.mjs ADDRESS animate PICTURE '{"prompt": "snow falls", "numFrames": 8}' [OUT] [--abort-at EVENT] [--timeout MS]
//   node client.mjs ADDRESS speak RECORDING '{"text": "Good morning.", "live": true}' [OUT] [--abort-at EVENT] [--timeout MS]
//   node client.mjs ADDRESS watch NAME FROM [OUT]
//   node client.mjs ADDRESS cancel NAME
//
// --abort-at N hangs up after the Nth event, as a person does who closes the page. --timeout bounds everything.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { animate, connect, explain, Pieces, speak } from "./src/client.js";

const started = performance.now();
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { "abort-at": { type: "string" }, timeout: { type: "string" } },
});
const [address, verb, ...words] = positionals;
const client = connect(address);

function say(what) {
  const line = { ms: Math.round(performance.now() - started), ...what };
  console.log(JSON.stringify(line, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
}

function told(event) {
  const { accepted, queued, progress, preview, chunk, sound, samples, result, stored } = event;
  return {
    sequence: event.sequence,
    ...(accepted && { accepted: accepted.name }),
    ...(queued && { queued: queued.position }),
    ...(progress && { progress: progress.stage, step: progress.step, steps: progress.steps, part: progress.part }),
    ...(preview && { preview: preview.image.length }),
    ...(chunk && { chunk: chunk.data.length }),
    ...(sound && { sound: sound.sampleRate }),
    ...(samples && { samples: samples.pcm.length / 2, offset: samples.offset }),
    ...(result && { result: result.artifact.hex, outcome: result.report.outcome, tier: result.report.tier }),
    ...(stored && { stored: stored.state }),
  };
}

async function follow(events, out, hangUp = () => {}) {
  const pieces = new Pieces();
  const heard = createHash("sha256");
  let count = 0;
  for await (const event of events) {
    pieces.add(event);
    if (event.samples) heard.update(event.samples.pcm);
    say(told(event));
    if (++count === Number(values["abort-at"])) hangUp();
  }
  const file = pieces.join();
  if (out) writeFileSync(out, file);
  say({ bytes: file.length, sha256: createHash("sha256").update(file).digest("hex"), heard: heard.digest("hex") });
}

async function* unwrapped(responses) {
  for await (const { event } of responses) yield event;
}

async function make(how, source, medium, file, fields, out) {
  const hangUp = new AbortController();
  const request = { [source]: { case: medium, value: readFileSync(file) }, ...JSON.parse(fields) };
  const options = {
    signal: hangUp.signal,
    ...(values.timeout && { timeoutMs: Number(values.timeout) }),
    onResume: ({ name, from, reason }) => say({ resumed: name, from, ...(reason && { reason }) }),
    onTrailer: (trailer) => say({ "cache-status": trailer.get("cache-status") }),
  };
  await follow(how(client, request, options), out, () => hangUp.abort());
}

const verbs = {
  async animate(picture, fields = "{}", out = "") {
    await make(animate, "picture", "image", picture, fields, out);
  },
  async speak(recording, fields = "{}", out = "") {
    await make(speak, "recording", "voice", recording, fields, out);
  },
  async watch(name, from, out = "") {
    await follow(unwrapped(client.watch({ name, fromSequence: BigInt(from) })), out);
  },
  async cancel(name) {
    await client.cancel({ name });
    say({ cancelled: name });
  },
};

try {
  await verbs[verb](...words);
} catch (error) {
  say({ error: explain(error) });
  process.exitCode = 1;
}
