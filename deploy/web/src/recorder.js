// The microphone: a recording in a container that the service takes, made by the browser's own coder.

const KINDS = ["audio/webm;codecs=opus", "audio/mp4", "audio/ogg;codecs=opus"];
const REFUSALS = {
  NotAllowedError: "The microphone was refused: allow it for this page in your browser, or choose a file.",
  NotFoundError: "No microphone was found. Choose a file instead.",
  NotReadableError: "The microphone is in use by another program.",
};

/** Why this page cannot record; empty if it can, as far as one can tell before asking for the microphone. */
export function whyNot() {
  if (!isSecureContext) return "Recording works on https or localhost only. Choose a file instead.";
  if (!navigator.mediaDevices?.getUserMedia || typeof MediaRecorder === "undefined" || !kind()) {
    return "This browser cannot record. Choose a file instead.";
  }
  return "";
}

/** A recording under way. Whoever begins one must stop it, for until then the microphone is open. */
export class Recording {
  #recorder;
  #pieces = [];
  #ended;

  /** Asks for the microphone. Throws Error, in words for people. */
  static async begin() {
    let stream;
    try {
      // A voice as it is: what is meant for calls takes more from it than an echo.
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false } });
    } catch (error) {
      throw new Error(REFUSALS[error.name] ?? `The microphone does not work: ${error.message}.`, { cause: error });
    }
    return new Recording(stream);
  }

  constructor(stream) {
    this.#recorder = new MediaRecorder(stream, { mimeType: kind() });
    this.#recorder.addEventListener("dataavailable", ({ data }) => this.#pieces.push(data));
    this.#ended = new Promise((resolve) => this.#recorder.addEventListener("stop", resolve, { once: true }));
    this.#recorder.start();
  }

  /** Ends when it is stopped, or when the microphone is taken away; then all of it, as a file. */
  async file() {
    await this.#ended;
    for (const track of this.#recorder.stream.getTracks()) track.stop();
    const type = this.#recorder.mimeType.split(";")[0];
    return new File(this.#pieces, `recorded.${type.split("/")[1]}`, { type });
  }

  stop() {
    if (this.#recorder.state !== "inactive") this.#recorder.stop();
  }
}

function kind() {
  return KINDS.find((each) => MediaRecorder.isTypeSupported(each));
}
