// Plays sound while it still comes, each piece right after the one before it.

const LEAD = 0.12; // seconds before the first piece, and after a gap: so long the next piece may take to come
const [LOWEST, HIGHEST] = [3000, 384000]; // samples per second that browsers take
const SAMPLES_OF_NO_SOUND = 24000;

export class Player {
  #context;
  #rate = 0; // samples per second of the pieces
  #next = 0; // when the piece to come is due, on the context's clock
  #pieces = []; // {source, due, until, from} of what is yet to be heard to its end, `from` in seconds of the sound
  #onMove;

  /**
   * To be opened by what a person does, for browsers play nothing else. At the rate of the sound nothing is resampled
   * piece by piece; any other will do. `onMove` hears, picture by picture, which second is heard; null: none any more.
   */
  constructor(rate, onMove) {
    const sampleRate = rate >= LOWEST && rate <= HIGHEST ? rate : SAMPLES_OF_NO_SOUND;
    this.#context = new AudioContext({ sampleRate });
    this.#onMove = onMove;
    this.#context.resume();
  }

  static get possible() {
    return typeof AudioContext !== "undefined";
  }

  begin(rate) {
    this.#rate = rate;
  }

  /** The next samples, from -1 to 1, `offset` samples after the first. */
  play(samples, offset) {
    if (this.#context.state === "closed") return;
    const buffer = this.#context.createBuffer(1, samples.length, this.#rate);
    buffer.copyToChannel(samples, 0);
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#context.destination);
    if (this.#next < this.#context.currentTime) this.#next = this.#context.currentTime + LEAD;
    const piece = { source, due: this.#next, until: this.#next + buffer.duration, from: offset / this.#rate };
    this.#next = piece.until;
    source.addEventListener("ended", () => {
      this.#pieces = this.#pieces.filter((each) => each !== piece);
    });
    source.start(piece.due);
    this.#pieces.push(piece);
    if (this.#pieces.length === 1) this.#move();
  }

  /** What is yet to be heard is not; the sound begins anew. */
  restart() {
    for (const { source } of this.#pieces) source.stop();
    this.#pieces = [];
    this.#next = 0;
  }

  /** Silence, at once and for good. */
  stop() {
    this.restart();
    if (this.#context.state !== "closed") this.#context.close();
    this.#onMove(null);
  }

  #move() {
    const [piece] = this.#pieces;
    if (!piece) {
      this.#onMove(null);
      return;
    }
    const here = Math.min(Math.max(this.#context.currentTime, piece.due), piece.until);
    this.#onMove(piece.from + here - piece.due);
    requestAnimationFrame(() => this.#move());
  }
}
