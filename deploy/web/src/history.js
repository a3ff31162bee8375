// What was asked for since the page was opened, the latest first.

import { StageOutcome } from "../gen/reprise/v1/common_pb.js";
import { at, element } from "./dom.js";
import { formatOf } from "./panel.js";
import { answered, outcomeName, seconds, stagesThat } from "./words.js";

const LONGEST = 140; // characters that are shown of somebody's words

/** `thumbnail` is an element that shows it at a glance, `words` are the person's own. */
export function remember({ thumbnail, words, result, took }) {
  const { report } = result;
  const cells = [
    thumbnail,
    `${words.length > LONGEST ? `${words.slice(0, LONGEST)}…` : words} (${formatOf(result)}, seed ${result.seed})`,
    element("span", answered(report), `badge ${outcomeName(report)}`),
    stagesThat(StageOutcome.RUN, report.stages) || "nothing",
    stagesThat(StageOutcome.REUSED, report.stages) || "nothing",
    report.deviceSecondsSpent.toFixed(2),
    seconds(took),
  ];
  const row = element("tr");
  row.append(...cells.map((cell) => element("td", cell)));
  at.rows.prepend(row);
  at.history.hidden = false;
}
