// The panel beside the form: how far the work is, what went wrong, where the answer came from. Each mode has its own,
// below whatever it shows.

import { StageOutcome } from "../gen/reprise/v1/common_pb.js";
import { Stored_State } from "../gen/reprise/v1/media_pb.js";
import { at, element } from "./dom.js";
import { answered, became, kindOf, lookedUp, outcomeName, seconds, stagesThat, valueName } from "./words.js";

export class Panel {
  #parts;
  #turn = 0; // of whoever the panel is about

  constructor(section) {
    section.append(at.panel.content.cloneNode(true));
    const parts = [...section.querySelectorAll("[data-part]")];
    this.#parts = Object.fromEntries(parts.map((each) => [each.dataset.part, each]));
  }

  /** Returns the turn that has begun, for what comes after its answer. */
  begin() {
    const { problem, answer, progress } = this.#parts;
    problem.hidden = answer.hidden = true;
    progress.hidden = false;
    this.#advance(null);
    this.doing("Asking");
    return ++this.#turn;
  }

  end(cancelled) {
    this.#parts.progress.hidden = !cancelled;
    this.#parts.progress.classList.remove("waiting");
  }

  /** How far a generation is, as its events tell. */
  show({ accepted, queued, progress }) {
    if (accepted) {
      const known = stagesThat(StageOutcome.REUSED, accepted.stages);
      this.doing(known ? `Accepted; ${known} known already` : "Accepted");
    }
    if (queued) this.doing(queued.position ? `Queued, ${queued.position} before it` : "Next in the queue");
    if (progress) this.#step(progress);
  }

  /** What is under way. Who listens to the page hears no more of it than `aloud`, and that only when it changes. */
  doing(text, aloud = text) {
    this.#parts.doing.textContent = text;
    this.#say(aloud);
  }

  clock(ms) {
    this.#parts.clock.textContent = seconds(ms);
  }

  complain(text) {
    this.#parts.problem.textContent = text;
    this.#parts.problem.hidden = false;
  }

  /** Where the answer came from, and the file to save. */
  present(result, url, took) {
    const { answer, outcome, told, save, stages, facts, notice } = this.#parts;
    const { report } = result;
    outcome.className = `badge ${outcomeName(report)}`;
    outcome.textContent = answered(report);
    told.textContent = {
      hit: `Nothing was computed. ${seconds(took)}.`,
      miss: `Generated in ${seconds(took)}.`,
      coalesced: `Joined an equal request that was under way. ${seconds(took)}.`,
      bypass: `Generated without asking the cache in ${seconds(took)}.`,
    }[outcomeName(report)];
    this.#say(`${outcome.textContent}. ${told.textContent}`);
    save.href = url;
    save.download = `reprise.${formatOf(result)}`;
    stages.replaceChildren(...report.stages.map(chip));
    facts.replaceChildren();
    const spent = report.deviceSecondsSpent.toFixed(3);
    this.fact("device time", `${spent} s spent, ${report.deviceSecondsSaved.toFixed(3)} s saved`);
    this.fact("tiers asked", report.lookups.map(lookedUp).join(", ") || "none");
    this.fact("seed", String(result.seed));
    this.fact("file", `${Number(result.artifact.size).toLocaleString("en")} bytes, ${result.mediaType}`);
    this.fact("artifact", result.artifact.hex);
    if (result.traceId) this.fact("trace", result.traceId);
    this.stored(result.stored);
    notice.hidden = !result.randomWeights;
    answer.hidden = false;
  }

  /** What became of the file, unless the panel is about another one by now. No `stored`: nobody knows. */
  stored(stored, turn = this.#turn) {
    if (turn === this.#turn) this.fact("stored", stored ? valueName(Stored_State, stored.state) : "unknown");
  }

  fact(term, text) {
    const { facts } = this.#parts;
    const known = [...facts.querySelectorAll("dt")].find((each) => each.textContent === term);
    if (known) known.nextElementSibling.textContent = text;
    else facts.append(element("dt", term), element("dd", text));
  }

  /** Of a text in parts the bar counts all its parts' steps, as if each had as many as this one. */
  #step({ stage, step, steps, part, parts }) {
    const done = (Math.max(0, part - 1) + step / Math.max(1, steps)) / Math.max(1, parts);
    this.#advance(done);
    const which = part ? `Sentence ${part} of ${parts}, ` : "";
    this.doing(`${which}${stage}: ${step} of ${steps}`, `${which}${stage}`);
  }

  /** How much of the work is done, from 0 to 1; null: nobody knows. */
  #advance(done) {
    const { progress, bar } = this.#parts;
    progress.classList.toggle("waiting", done === null);
    bar.firstElementChild.style.width = done === null ? "" : `${100 * done}%`;
    if (done === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(100 * done));
  }

  #say(text) {
    if (this.#parts.aloud.textContent !== text) this.#parts.aloud.textContent = text;
  }
}

/** As in the file's name. */
export function formatOf(result) {
  return result.mediaType.split(/[/;]/)[1];
}

function chip(stage) {
  const item = element("li", stage.stage, kindOf(stage));
  item.append(element("small", became(stage)));
  return item;
}
