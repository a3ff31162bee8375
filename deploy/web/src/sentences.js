// Where sentences lie in a sound that is heard while it is made.
//
// Nothing says it outright. But sentences are made one after the other, steps of one come only after all sound of those
// before it, and one that is reused comes without steps. So where the sound stands at its first step, a sentence begins,
// give or take the quarter of a second in which sound is told. Where it ends is known likewise if the next one is made,
// too; else its steps say, as each of them makes as much sound. Between two that are both reused nothing can be told.

export class Sentences {
  #count = 0;
  #stage = ""; // whose steps are counted
  #told = 0; // samples
  #made = new Map(); // number of a sentence: {from, steps, first, last}; the latter two {step, told}
  #current = null;

  /** Takes an event in. */
  hear({ progress, samples }) {
    if (progress?.part) this.#step(progress);
    if (samples) this.#listen(samples);
  }

  /** Stretches [{from, to, first, last, kind}] of this many samples, for sentences `first` to `last`, from 1. */
  stretches(length) {
    const found = [];
    let [from, first] = [0, 1];
    for (const [number, made] of [...this.#made].sort(([a], [b]) => a - b)) {
      if (number > first) found.push({ from, to: made.from, first, last: number - 1, kind: "reused" });
      const to = this.#endOf(number, Math.max(made.from, from), length);
      found.push({ from: number > first ? made.from : from, to, first: number, last: number, kind: "run" });
      [from, first] = [to, number + 1];
    }
    const last = this.#count;
    if (first <= last && from < length) found.push({ from, to: length, first, last, kind: "reused" });
    return found;
  }

  #step({ stage, step, part, parts }) {
    this.#stage ||= stage;
    if (stage !== this.#stage) return;
    this.#count = parts;
    if (!this.#made.has(part)) this.#made.set(part, { from: this.#told, steps: 0, first: null, last: null });
    this.#current = this.#made.get(part);
    this.#current.steps = Math.max(step, this.#current.steps);
  }

  #listen({ offset, pcm }) {
    const length = pcm.length / 2;
    this.#told = Number(offset) + length;
    const made = this.#current;
    if (!made) return;
    // What was told when its first step came was a part of a quarter of a second short: the half of it, on average.
    if (!made.first && made.from) made.from += length / 2;
    const here = { step: made.steps, told: this.#told };
    made.first ??= here;
    if (here.step > made.last?.step || !made.last) made.last = here;
  }

  #endOf(number, from, length) {
    const next = this.#made.get(number + 1);
    if (next) return Math.min(next.from, length);
    if (number === this.#count) return length;
    const { steps, first, last } = this.#made.get(number);
    const samplesPerStep = last && last.step > first.step ? (last.told - first.told) / (last.step - first.step) : 0;
    return Math.min(length, Math.max(from + steps * samplesPerStep, last?.told ?? from));
  }
}
