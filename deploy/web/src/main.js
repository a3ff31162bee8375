// The playground: asks for a video, shows it coming into being, then says where it came from.

import { create } from "@bufbuild/protobuf";

import { CachePolicySchema, LookupOutcome, Outcome, StageOutcome, Tier } from "../gen/reprise/v1/common_pb.js";
import { AnimateImageRequestSchema, Stored_State } from "../gen/reprise/v1/media_pb.js";
import { animate, connect, explain, Pieces } from "./client.js";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const search = new URLSearchParams(location.search);
// The page may come from elsewhere than its gateway: ?gateway=https://media.example.org
const address = search.get("gateway") ?? location.origin;

let picture = null; // {data, url} of the file to animate
let running = null; // {client, abort, name, sequence} of the last generation
const urls = { video: null, preview: null };

// The form.

async function choose(file) {
  if (!file) return;
  if (picture) URL.revokeObjectURL(picture.url);
  picture = { data: new Uint8Array(await file.arrayBuffer()), url: URL.createObjectURL(file) };
  at.chosen.src = picture.url;
  at.chosen.alt = file.name;
  at.chosen.hidden = false;
  at.invitation.hidden = true;
}

function asked() {
  const given = (name, parse) => (at[name].value === "" ? undefined : parse(at[name].value));
  return create(AnimateImageRequestSchema, {
    picture: { case: "image", value: picture.data },
    prompt: at.prompt.value,
    negativePrompt: at.negativePrompt.value,
    width: given("width", Number),
    height: given("height", Number),
    numFrames: given("numFrames", Number),
    numInferenceSteps: given("numInferenceSteps", Number),
    guidanceScale: given("guidanceScale", Number),
    playbackFps: given("playbackFps", Number),
    format: at.format.value,
    seed: given("seed", BigInt),
    cachePolicy: create(CachePolicySchema, { mode: Number(at.mode.value), fresh: at.fresh.checked }),
  });
}

// One generation, from the request to its answer.

async function generate() {
  if (!picture) {
    complain("Choose a picture first.");
    return;
  }
  const abort = new AbortController();
  const started = performance.now();
  const pieces = new Pieces();
  let request, result, thumbnail;
  const mine = (running = { client: connect(address, { apiKey: at.apiKey.value }), abort, name: "", sequence: 0n });
  begin();
  const clock = setInterval(() => (at.clock.textContent = seconds(performance.now() - started)), 100);
  try {
    request = asked();
    const events = animate(mine.client, request, {
      signal: abort.signal,
      onResume: ({ name }) => doing(name ? "The stream broke; picking it up again" : "Asking again"),
    });
    for await (const event of events) {
      pieces.add(event);
      mine.sequence = event.sequence;
      thumbnail = show(event) ?? thumbnail;
      result = event.result;
    }
    const took = performance.now() - started;
    const file = new Blob([pieces.join()], { type: result.mediaType });
    present(result, file, took);
    remember(request, result, took, thumbnail ?? picture.data);
    if (mine.name && result.stored?.state === Stored_State.PENDING) follow(mine);
  } catch (error) {
    if (!abort.signal.aborted) complain(sentence(error));
    else doing("Cancelled");
  } finally {
    clearInterval(clock);
    end(abort.signal.aborted);
  }
}

/** Leaves the stream, and says that nobody here waits for it any more: else the work would go on for a grace. */
async function cancel() {
  const { client, abort, name } = running;
  abort.abort();
  if (name) await client.cancel({ name }).catch(() => {});
}

/** After the result, until the artifact is durable. Nobody waits for it, so nothing is made of a broken stream. */
async function follow({ client, name, sequence }) {
  try {
    for await (const { event } of client.watch({ name, fromSequence: sequence + 1n })) {
      if (event.stored) tellStored(event.stored);
    }
  } catch {
    fact("stored", "unknown");
  }
}

// What is seen.

function begin() {
  at.animate.disabled = true;
  at.cancel.disabled = false;
  for (const element of [at.problem, at.answer, at.idle, at.preview, at.video, at.tag]) element.hidden = true;
  at.progress.hidden = false;
  at.progress.classList.add("waiting");
  doing("Asking");
}

function end(cancelled) {
  at.animate.disabled = false;
  at.cancel.disabled = true;
  at.progress.classList.remove("waiting");
  at.progress.hidden = !cancelled;
  at.bar.style.width = "0";
  if (at.video.hidden) at.preview.hidden = at.tag.hidden = true;
  at.idle.hidden = !at.video.hidden;
}

/** Returns the bytes of a preview, if the event has one. */
function show({ accepted, queued, progress, preview }) {
  if (accepted) {
    running.name = accepted.name;
    const reused = accepted.stages.filter((stage) => stage.outcome === StageOutcome.REUSED);
    doing(reused.length ? `Accepted; ${list(reused)} known already` : "Accepted");
  }
  if (queued) doing(queued.position ? `Queued, ${queued.position} before it` : "Next in the queue");
  if (progress) {
    at.progress.classList.remove("waiting");
    at.bar.style.width = `${(100 * progress.step) / Math.max(1, progress.steps)}%`;
    doing(`${progress.stage}: ${progress.step} of ${progress.steps}`);
  }
  if (preview) {
    at.preview.src = renew("preview", new Blob([preview.image], { type: "image/jpeg" }));
    at.preview.hidden = at.tag.hidden = false;
    at.tag.textContent = `preview, step ${preview.step}`;
  }
  return preview?.image;
}

function present(result, file, took) {
  const { report } = result;
  const outcome = name(Outcome, report.outcome);
  at.video.src = renew("video", file);
  at.video.hidden = false;
  at.preview.hidden = at.tag.hidden = true;
  at.answer.hidden = false;
  at.outcome.className = `badge ${outcome}`;
  at.outcome.textContent = answered(report);
  at.told.textContent = {
    hit: `Nothing was computed. ${seconds(took)}.`,
    miss: `Generated in ${seconds(took)}.`,
    coalesced: `Joined an equal request that was under way. ${seconds(took)}.`,
    bypass: `Generated without asking the cache in ${seconds(took)}.`,
  }[outcome];
  at.save.href = at.video.src;
  at.save.download = `reprise.${result.mediaType.split("/")[1]}`;
  at.stages.replaceChildren(...report.stages.map(chip));
  at.facts.replaceChildren();
  fact("device time", `${report.deviceSecondsSpent.toFixed(3)} s spent, ${report.deviceSecondsSaved.toFixed(3)} s saved`);
  fact("tiers asked", report.lookups.map(lookedUp).join(", ") || "none");
  fact("seed", String(result.seed));
  fact("file", `${Number(result.artifact.size).toLocaleString("en")} bytes, ${result.mediaType}`);
  fact("artifact", result.artifact.hex);
  if (result.traceId) fact("trace", result.traceId);
  tellStored(result.stored);
  at.notice.hidden = !result.randomWeights;
}

function lookedUp({ tier, outcome, seconds }) {
  return `${tierName(tier)} ${name(LookupOutcome, outcome)} ${(1000 * seconds).toFixed(1)} ms`;
}

function chip(stage) {
  const item = document.createElement("li");
  const kinds = { [StageOutcome.RUN]: "run", [StageOutcome.REUSED]: "reused" };
  item.className = kinds[stage.outcome] ?? "spared";
  const time = `${stage.deviceSeconds.toFixed(3)} s`;
  const told = { run: `run, ${time}`, reused: `from ${tierName(stage.tier)}, saved ${time}`, spared: "not needed" };
  item.append(stage.stage, element("small", told[item.className]));
  return item;
}

function remember(request, result, took, image) {
  const { report } = result;
  const thumbnail = element("img");
  thumbnail.alt = "";
  thumbnail.src = URL.createObjectURL(new Blob([image]));
  const badge = element("span", answered(report));
  badge.className = `badge ${name(Outcome, report.outcome)}`;
  const stages = (outcome) => list(report.stages.filter((stage) => stage.outcome === outcome)) || "nothing";
  const format = result.mediaType.split("/")[1];
  const cells = [
    thumbnail,
    `${request.prompt} (${format}, seed ${result.seed})`,
    badge,
    stages(StageOutcome.RUN),
    stages(StageOutcome.REUSED),
    report.deviceSecondsSpent.toFixed(2),
    seconds(took),
  ];
  const row = element("tr");
  row.append(...cells.map((cell) => element("td", cell)));
  at.rows.prepend(row);
  at.history.hidden = false;
}

function tellStored(stored) {
  fact("stored", name(Stored_State, stored?.state ?? 0).replace("_", " "));
}

function fact(term, text) {
  const known = [...at.facts.querySelectorAll("dt")].find((each) => each.textContent === term);
  if (known) known.nextElementSibling.textContent = text;
  else at.facts.append(element("dt", term), element("dd", text));
}

function complain(text) {
  at.problem.textContent = text;
  at.problem.hidden = false;
}

function doing(text) {
  at.doing.textContent = text;
}

// Small things.

function sentence(error) {
  const { code, reason, message, retrySeconds } = explain(error);
  const again = retrySeconds === null ? "" : ` Try again in ${Math.ceil(retrySeconds)} s.`;
  return `${message}.${again} (${[code, reason].filter(Boolean).join(", ")})`;
}

function answered(report) {
  const outcome = name(Outcome, report.outcome);
  return outcome === "hit" ? `hit, ${tierName(report.tier)}` : outcome;
}

function tierName(tier) {
  return tier === Tier.POOL ? "device" : Tier[tier];
}

function name(enumeration, value) {
  return enumeration[value].toLowerCase();
}

function list(stages) {
  return stages.map((stage) => stage.stage).join(", ");
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function element(tag, content = "") {
  const made = document.createElement(tag);
  made.append(content);
  return made;
}

/** The address of these bytes, in place of those that stood there before. */
function renew(place, blob) {
  if (urls[place]) URL.revokeObjectURL(urls[place]);
  urls[place] = URL.createObjectURL(blob);
  return urls[place];
}

at.picture.addEventListener("change", () => choose(at.picture.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  at.drop.addEventListener(kind, (event) => {
    event.preventDefault();
    at.drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}
at.request.addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
at.cancel.addEventListener("click", cancel);
