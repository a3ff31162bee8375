// A sound drawn as a wave, with coloured stretches, and where it is heard.

const PER_SECOND = 200; // peaks that are kept
const STRIP = 22; // pixels below the wave for the names of stretches

export class Waveform {
  #canvas;
  #rate = 1; // samples per second
  #length = 0; // samples
  #room = 0; // seconds that are drawn at least
  #peaks = []; // the lowest and the highest sample of each 200th of a second, from -1 to 1
  #stretches = [];
  #place = null; // seconds: what is heard
  #waiting = false;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#soon()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#soon());
  }

  get length() {
    return this.#length;
  }

  get seconds() {
    return this.#length / this.#rate;
  }

  /** With `room` the wave fills so many seconds before it shrinks to make place for more, until it must `fit`. */
  begin(rate, room = 0) {
    this.#rate = rate;
    this.#room = room;
    this.#length = 0;
    this.#peaks = [];
    this.#stretches = [];
    this.#place = null;
    this.#soon();
  }

  /** More samples, from -1 to 1. */
  add(samples) {
    for (const value of samples) {
      const peak = Math.floor((this.#length++ * PER_SECOND) / this.#rate);
      const known = (this.#peaks[peak] ??= [value, value]);
      if (value < known[0]) known[0] = value;
      if (value > known[1]) known[1] = value;
    }
    this.#soon();
  }

  /** Stretches [{from, to, kind, name}] in samples; the kinds are those of stages. */
  mark(stretches) {
    this.#stretches = stretches;
    this.#soon();
  }

  fit() {
    this.#room = 0;
    this.#soon();
  }

  /** What is heard now, in seconds; null: nothing. */
  follow(place) {
    this.#place = place;
    this.#soon();
  }

  /** The seconds at a point of the screen. */
  at(clientX) {
    const { left, width } = this.#canvas.getBoundingClientRect();
    return ((clientX - left) / width) * this.seconds;
  }

  /** Draws it onto another canvas, small and without names. */
  drawOnto(canvas, width, height) {
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    this.#draw(canvas, 0, null);
  }

  #soon() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      const { width, height } = this.#canvas.getBoundingClientRect();
      if (!width) return; // it is not shown
      this.#canvas.width = width * devicePixelRatio;
      this.#canvas.height = height * devicePixelRatio;
      this.#draw(this.#canvas, this.#stretches.some(({ name }) => name) ? STRIP : 0, this.#place);
    });
  }

  #draw(canvas, strip, place) {
    const pen = canvas.getContext("2d");
    const colours = this.#colours();
    const colour = (kind) => colours[kind] ?? colours.other;
    const width = canvas.width / devicePixelRatio;
    const height = canvas.height / devicePixelRatio - strip;
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height + strip);
    if (!this.#length) return;
    const whole = Math.max(this.#length, this.#room * this.#rate);
    const across = (samples) => (width * samples) / whole;
    const perColumn = (PER_SECOND * whole) / this.#rate / width;
    for (let x = 0; x < across(this.#length); x++) {
      const here = this.#peaks.slice(Math.floor(x * perColumn), Math.max(1, Math.ceil((x + 1) * perColumn)));
      const low = Math.min(0, ...here.map(([lowest]) => lowest));
      const high = Math.max(0, ...here.map(([, highest]) => highest));
      const sample = (x / width) * whole;
      pen.fillStyle = colour(this.#stretches.find(({ from, to }) => from <= sample && sample < to)?.kind);
      const top = (height / 2) * (1 - 0.92 * high);
      pen.fillRect(x, top, 1, Math.max(1, (height / 2) * (1 - 0.92 * low) - top));
    }
    if (strip) for (const each of this.#stretches) this.#name(pen, each, across, height, colour(each.kind));
    if (place !== null) {
      pen.fillStyle = colours.place;
      pen.fillRect(Math.min(width - 2, across(place * this.#rate)), 0, 2, height);
    }
  }

  /** The page's colours as they are now: only where one is used is it known which of light and dark. */
  #colours() {
    const names = { run: "--run", reused: "--hit", other: "--accent", place: "--ink" };
    const found = Object.entries(names).map(([kind, name]) => {
      this.#canvas.style.color = `var(${name})`;
      return [kind, getComputedStyle(this.#canvas).color];
    });
    this.#canvas.style.color = "";
    return Object.fromEntries(found);
  }

  /** A coloured line below a stretch, and its name if there is room for it. */
  #name(pen, { from, to, name }, across, y, colour) {
    const [left, right] = [across(from) + 1, across(to) - 1];
    pen.fillStyle = colour;
    pen.fillRect(left, y + 3, Math.max(1, right - left), 4);
    pen.font = `11px ${getComputedStyle(this.#canvas).fontFamily}`;
    const wide = pen.measureText(name).width;
    if (wide < right - left) pen.fillText(name, left + (right - left - wide) / 2, y + 18);
  }
}
