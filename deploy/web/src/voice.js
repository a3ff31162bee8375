// The voice to speak in: a recording from a file or from the microphone, which can be heard again.

import { at, Place } from "./dom.js";
import { takeFiles } from "./form.js";
import { Recording, whyNot } from "./recorder.js";
import { Waveform } from "./waveform.js";
import { seconds } from "./words.js";

const LONGEST_MS = 30_000; // a recording is stopped then: no model wants more of a voice

export class Voice {
  data = null; // bytes of the file, as it was chosen or recorded
  #replay = new Place();
  #wave = new Waveform(at.voiceWave);
  #recording = null;
  #quiet;

  /** `quiet` is called before anything else is to be heard, here or by the microphone. */
  constructor(quiet) {
    this.#quiet = quiet;
    at.voiceReplay.addEventListener("play", quiet);
    takeFiles(at.voiceDrop, at.voice, (file) => this.#take(file));
    at.microphone.textContent = whyNot();
    at.record.disabled = Boolean(whyNot());
    at.record.addEventListener("click", () => (this.#recording ? this.stop() : this.#record()));
  }

  /** Ends a recording, if there is one. */
  stop() {
    this.#recording?.stop();
  }

  async #take(file) {
    this.data = new Uint8Array(await file.arrayBuffer());
    at.voiceReplay.src = this.#replay.put(file);
    at.voiceReplay.hidden = false;
    at.voiceName.hidden = false;
    at.voiceName.textContent = file.name;
    const sound = await decoded(this.data);
    at.voiceInvitation.hidden = Boolean(sound);
    at.voiceWave.hidden = !sound;
    if (!sound) return; // what a browser cannot read, the service may
    this.#wave.begin(sound.sampleRate);
    this.#wave.add(sound.getChannelData(0));
    at.voiceName.textContent = `${file.name}, ${seconds(1000 * sound.duration)}`;
  }

  async #record() {
    at.record.disabled = true;
    at.voiceReplay.pause();
    this.#quiet();
    try {
      this.#recording = await Recording.begin();
    } catch (error) {
      at.microphone.textContent = error.message;
      return;
    } finally {
      at.record.disabled = false;
    }
    const stopping = setTimeout(() => this.stop(), LONGEST_MS);
    const started = performance.now();
    const tell = () => (at.recordLabel.textContent = `Stop, ${((performance.now() - started) / 1000).toFixed(1)} s`);
    const clock = setInterval(tell, 100);
    tell();
    at.record.classList.add("on");
    at.microphone.textContent = "Recording. Read something aloud for a few seconds.";
    const file = await this.#recording.file();
    this.#recording = null;
    clearTimeout(stopping);
    clearInterval(clock);
    at.record.classList.remove("on");
    at.recordLabel.textContent = "Record again";
    at.microphone.textContent = "";
    await this.#take(file);
  }
}

/** The sound in a file; undefined where the browser cannot read it. */
export async function decoded(bytes) {
  const context = new OfflineAudioContext(1, 1, 48_000);
  return context.decodeAudioData(bytes.slice().buffer).catch(() => undefined);
}
