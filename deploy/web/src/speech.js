// Speech: a voice and a text in; the sound while it is made, then the file, and which sentences were reused.

import { create } from "@bufbuild/protobuf";

import { SynthesizeSpeechRequestSchema } from "../gen/reprise/v1/media_pb.js";
import { speak } from "./client.js";
import { at, element, Place } from "./dom.js";
import { cachePolicy, given } from "./form.js";
import { Player } from "./player.js";
import { Sentences } from "./sentences.js";
import { decoded, Voice } from "./voice.js";
import { Waveform } from "./waveform.js";
import { kindOf, outcomeName, seconds } from "./words.js";

const WITHOUT_SOUND = "ogg"; // is not heard while it is made: its samples are others
const USUAL_RATE = 24_000; // samples per second, until a sound has told its own
const ROOM = 6; // seconds of the wave, while the sound grows
const THUMBNAIL = [52, 34]; // pixels
const SAID = { run: "spoken", reused: "reused" };

export class Speech {
  name = "speak";
  verb = "Speak";
  ask = speak;
  panel;
  #voice = new Voice(() => this.#quiet());
  #wave = new Waveform(at.wave);
  #file = new Place();
  #player = null;
  #rate = USUAL_RATE;
  #sentences;
  #firstHeard; // ms from the request to the first samples
  #words;

  constructor(panel) {
    this.panel = panel;
    at.hush.addEventListener("click", () => this.#hush());
    at.speech.addEventListener("play", () => this.#hush());
    at.speech.addEventListener("timeupdate", () => {
      if (!at.speech.hidden) this.#wave.follow(at.speech.currentTime);
    });
    at.wave.addEventListener("click", (event) => {
      if (!at.speech.hidden) at.speech.currentTime = this.#wave.at(event.clientX);
    });
  }

  missing() {
    return this.#voice.data ? "" : "Choose or record a voice first.";
  }

  request() {
    this.#words = at.text.value;
    return create(SynthesizeSpeechRequestSchema, {
      recording: { case: "voice", value: this.#voice.data },
      text: at.text.value,
      speed: given("speed", Number),
      sampleRate: given("sampleRate", Number),
      format: at.soundFormat.value,
      seed: given("seed", BigInt),
      cachePolicy: cachePolicy(at.fold.checked ? { similarity: { lines: true } } : {}),
      live: at.soundFormat.value !== WITHOUT_SOUND, // also where nobody listens: it is drawn
    });
  }

  begin() {
    this.#quiet();
    for (const each of [at.silence, at.wave, at.heard, at.sentences, at.speech]) each.hidden = true;
    this.#firstHeard = undefined;
    this.#anew();
    const listens = at.hear.checked && at.soundFormat.value !== WITHOUT_SOUND && Player.possible;
    if (listens) this.#player = new Player(given("sampleRate", Number) ?? this.#rate, (place) => this.#heard(place));
  }

  show(event, ms) {
    this.#sentences.hear(event);
    if (event.sound) this.#tune(event.sound.sampleRate);
    if (event.samples) this.#listen(event.samples, ms);
  }

  resume({ reason }) {
    if (reason === "SOUND_CHANGED") this.#anew();
  }

  async present(result, file) {
    at.speech.src = this.#file.put(file);
    at.speech.hidden = at.wave.hidden = false;
    at.heard.hidden = true;
    this.#wave.fit();
    if (!this.#wave.length) await this.#draw(file);
    this.#mark(result);
    if (at.hear.checked && !this.#player) at.speech.play().catch(() => {}); // where a browser wants a click for it
    return at.speech.src;
  }

  /** What is to be said of speech alone. */
  tell({ report, firstAudioSeconds }) {
    if (this.#firstHeard !== undefined) {
      const there = seconds(1000 * firstAudioSeconds);
      this.panel.fact("first sound", `came after ${seconds(this.#firstHeard)}; it left the gateway after ${there}`);
    }
    this.panel.fact("length", `${this.#wave.seconds.toFixed(2)} s`);
    if (report.folded.length) this.panel.fact("folded", `read with other ${report.folded.join(", ")} than written`);
  }

  row() {
    const thumbnail = element("canvas");
    thumbnail.setAttribute("aria-hidden", "true");
    this.#wave.drawOnto(thumbnail, ...THUMBNAIL);
    return { words: this.#words, thumbnail };
  }

  end() {
    if (at.speech.hidden) this.#hush();
    at.heard.hidden = true;
    at.wave.hidden = at.speech.hidden;
    at.silence.hidden = !at.speech.hidden;
  }

  leave() {
    this.#voice.stop(); // no microphone is open that is not seen
  }

  #anew() {
    this.#sentences = new Sentences();
    this.#wave.begin(this.#rate);
    this.#player?.restart();
  }

  #tune(rate) {
    this.#rate = rate;
    this.#wave.begin(rate, ROOM);
    this.#player?.begin(rate);
  }

  #listen({ offset, pcm }, ms) {
    if (this.#firstHeard === undefined) {
      this.#firstHeard = ms;
      at.heard.textContent = `first sound came after ${seconds(ms)}`;
      at.heard.hidden = at.wave.hidden = false;
    }
    const samples = fromPcm(pcm);
    this.#wave.add(samples);
    this.#wave.mark(this.#sentences.stretches(this.#wave.length).map(named));
    if (this.#player) {
      this.#player.play(samples, Number(offset));
      at.hush.hidden = false;
    }
  }

  /** Marks what was reused in the wave, as far as it is known where that lies, and in words below it. */
  #mark({ report }) {
    const [stage] = report.stages.filter(({ parts }) => parts.length);
    const kinds = stage?.parts.map((part) => (kindOf(part) === "run" ? "run" : "reused")) ?? [];
    const stretches = this.#sentences.stretches(this.#wave.length);
    const agrees = stretches.every((each) =>
      kinds.slice(each.first - 1, each.last).every((kind) => kind === each.kind),
    );
    const whole = { from: 0, to: this.#wave.length };
    if (outcomeName(report) === "hit" || (kinds.length && !kinds.includes("run"))) {
      this.#wave.mark([{ ...whole, kind: "reused", name: "reused" }]);
    } else if (kinds.length === 1) this.#wave.mark([{ ...whole, kind: kinds[0], name: "1" }]);
    else this.#wave.mark(agrees ? stretches.map(named) : []);
    at.sentences.replaceChildren(
      ...kinds.map((kind, place) => {
        const where = agrees && stretches.find(({ first }) => first === place + 1);
        return this.#sentence(`${place + 1} ${SAID[kind]}`, kind, where && where.from / this.#rate);
      }),
    );
    at.sentences.hidden = !kinds.length;
    const which = kinds.map((kind, place) => `sentence ${place + 1} ${SAID[kind]}`).join(", ") || "all of it reused";
    at.wave.setAttribute("aria-label", `The wave of ${this.#wave.seconds.toFixed(1)} s: ${which}`);
  }

  /** An entry of the list, which plays from there on if it is known where that is, in seconds. */
  #sentence(words, kind, from) {
    if (from === undefined || from === false) return element("li", words, kind);
    const button = element("button", words);
    button.type = "button";
    button.append(element("small", `${from.toFixed(1)} s`));
    button.addEventListener("click", () => {
      at.speech.currentTime = from;
      at.speech.play();
    });
    return element("li", button, kind);
  }

  async #draw(file) {
    const sound = await decoded(new Uint8Array(await file.arrayBuffer()));
    if (!sound) return;
    this.#wave.begin(sound.sampleRate);
    this.#wave.add(sound.getChannelData(0));
  }

  /** Where the sound that is played while it is made has come to; null: to its end. */
  #heard(place) {
    this.#wave.follow(place);
    if (place === null) at.hush.hidden = true;
  }

  #quiet() {
    this.#hush();
    at.speech.pause();
  }

  #hush() {
    this.#player?.stop();
    this.#player = null;
  }
}

function named(stretch) {
  const { first, last } = stretch;
  return { ...stretch, name: first === last ? `${first}` : `${first}–${last}` };
}

/** Numbers from -1 to 1, of 16-bit samples. */
function fromPcm(pcm) {
  const view = new DataView(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  return Float32Array.from({ length: pcm.length / 2 }, (_, index) => view.getInt16(2 * index, true) / 32768);
}
