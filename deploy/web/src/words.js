// Words for what the service says.

import { LookupOutcome, Outcome, StageOutcome, Tier } from "../gen/reprise/v1/common_pb.js";
import { explain } from "./client.js";

const KINDS = { [StageOutcome.RUN]: "run", [StageOutcome.REUSED]: "reused" };

export function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function outcomeName(report) {
  return valueName(Outcome, report.outcome);
}

/** How a request was answered, and by whom. */
export function answered(report) {
  const outcome = outcomeName(report);
  return outcome === "hit" ? `hit, ${tierName(report.tier)}` : outcome;
}

export function lookedUp({ tier, outcome, seconds }) {
  return `${tierName(tier)} ${valueName(LookupOutcome, outcome)} ${(1000 * seconds).toFixed(1)} ms`;
}

/** What became of a stage, or of its part: "run", "reused" or "spared". */
export function kindOf({ outcome }) {
  return KINDS[outcome] ?? "spared";
}

/** What became of a stage, in a few words. */
export function became({ parts, tier, deviceSeconds, ...stage }) {
  const time = `${deviceSeconds.toFixed(3)} s`;
  const [reused, ran] = ["reused", "run"].map((kind) => parts.filter((part) => kindOf(part) === kind).length);
  const of = (count) => `${count} of ${parts.length} sentences`;
  const known = reused && parts.length > 1 && `${of(reused)} reused`;
  switch (kindOf(stage)) {
    case "run":
      return listed(known, known ? `run for ${ran}` : ran < parts.length ? `run for ${of(ran)}` : "run", time);
    case "reused":
      return listed(tier && `from ${tierName(tier)}`, known, `saved ${time}`);
    default:
      return "not needed";
  }
}

/** Names of stages; of one that ran for some sentences only, for how many. */
export function stagesThat(outcome, stages) {
  const counts = (stage) => stage.parts.filter((part) => part.outcome === outcome).length;
  return stages
    .filter((stage) => stage.outcome === outcome || counts(stage))
    .map((stage) => {
      const count = counts(stage);
      return count && count < stage.parts.length ? `${stage.stage} (${count} of ${stage.parts.length})` : stage.stage;
    })
    .join(", ");
}

/** An error as one sentence and what to do about it. */
export function sentence(error) {
  const { code, reason, message, retrySeconds } = explain(error);
  const again = retrySeconds === null ? "" : ` Try again in ${Math.ceil(retrySeconds)} s.`;
  return `${message}.${again} (${[code, reason].filter(Boolean).join(", ")})`;
}

export function valueName(enumeration, value) {
  return enumeration[value].toLowerCase().replaceAll("_", " ");
}

function listed(...words) {
  return words.filter(Boolean).join(", ");
}

function tierName(tier) {
  return tier === Tier.POOL ? "device" : Tier[tier];
}
