// Pictures: a picture and a prompt in; rough pictures of the work, then the video.

import { create } from "@bufbuild/protobuf";

import { AnimateImageRequestSchema } from "../gen/reprise/v1/media_pb.js";
import { animate } from "./client.js";
import { at, element, Place } from "./dom.js";
import { cachePolicy, given, takeFiles } from "./form.js";

export class Pictures {
  name = "animate";
  verb = "Animate";
  ask = animate;
  panel;
  #picture = null; // bytes of the file to animate
  #chosen = new Place();
  #preview = new Place();
  #video = new Place();
  #asked = null; // {words, glance} of what is under way

  constructor(panel) {
    this.panel = panel;
    takeFiles(at.drop, at.picture, (file) => this.#choose(file));
  }

  /** What is missing before anything can be asked for. */
  missing() {
    return this.#picture ? "" : "Choose a picture first.";
  }

  request() {
    this.#asked = { words: at.prompt.value, glance: this.#picture };
    return create(AnimateImageRequestSchema, {
      picture: { case: "image", value: this.#picture },
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
      cachePolicy: cachePolicy(),
    });
  }

  begin() {
    for (const each of [at.idle, at.preview, at.video, at.tag]) each.hidden = true;
  }

  show({ preview }) {
    if (!preview) return;
    this.#asked.glance = preview.image;
    at.preview.src = this.#preview.put(new Blob([preview.image], { type: "image/jpeg" }));
    at.preview.hidden = at.tag.hidden = false;
    at.tag.textContent = `preview, step ${preview.step}`;
  }

  present(_result, file) {
    at.video.src = this.#video.put(file);
    at.video.hidden = false;
    return at.video.src;
  }

  row() {
    const thumbnail = element("img");
    thumbnail.alt = "";
    thumbnail.src = URL.createObjectURL(new Blob([this.#asked.glance]));
    return { words: this.#asked.words, thumbnail };
  }

  end() {
    at.preview.hidden = at.tag.hidden = true;
    at.idle.hidden = !at.video.hidden;
  }

  async #choose(file) {
    this.#picture = new Uint8Array(await file.arrayBuffer());
    at.chosen.src = this.#chosen.put(file);
    at.chosen.alt = file.name;
    at.chosen.hidden = false;
    at.invitation.hidden = true;
  }
}
