"""The JavaScript client where it is refused: alone in Node, with a service that answers as it is told."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from typing import Any

import pytest

from tests import browsers

_SCRIPT = """
import { Code, ConnectError } from "@connectrpc/connect";
import { animate, explain } from "./src/client.js";
import { RetryBudget } from "./src/budget.js";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const [acts, tokens, requests, together] = JSON.parse(process.argv[1]);
const asked = [];
const service = {
  async *animateImage() {
    asked.push(performance.now());
    const act = acts[Math.min(asked.length, acts.length) - 1];
    if (act === "answer") yield { event: { sequence: 1n, result: {} } };
    else if (act === "lost") throw new ConnectError("lost", Code.Unavailable);
    else {
      const later = { retryDelay: { seconds: 0n, nanos: act.seconds * 1e9 } };
      const details = [{ desc: ErrorInfoSchema, value: { reason: "QUEUE_FULL" } }];
      if (act.seconds !== null) details.push({ desc: RetryInfoSchema, value: later });
      throw new ConnectError("full", Code.ResourceExhausted, undefined, details);
    }
  },
};
const budget = tokens === null ? undefined : new RetryBudget(tokens);
const ends = [];
async function request() {
  try {
    for await (const event of animate(service, {}, { budget, timeoutMs: 20000 })) event;
    ends.push("answer");
  } catch (error) {
    ends.push(explain(error).reason || explain(error).code);
  }
}
const begun = [];
for (let each = 0; each < requests; each++) {
  begun.push(request());
  if (!together) await begun[each];
}
await Promise.all(begun);
const pauses = asked.slice(1).map((at, n) => at - asked[n]);
console.log(JSON.stringify({ ends, asked: asked.length, pauses, tokens: budget?.tokens }));
"""
FULL: dict[str, Any] = {"seconds": 0.01}


@pytest.fixture(scope="module")
def node() -> str:
    return browsers.node()


def play(
    node: str, *acts: Any, tokens: float | None = None, requests: int = 1, together: bool = False
) -> dict[str, Any]:
    """What becomes of so many requests, one after the other unless `together`; the last act goes on for ever."""
    said = json.dumps([acts, tokens, requests, together])
    command = [node, "--input-type=module", "-e", _SCRIPT, said]
    ran = subprocess.run(command, cwd=browsers.WEB, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_a_client_that_is_mostly_refused_stops_asking_again(node: str) -> None:
    """When half of the budget is gone, each request is made once; an answer gives a tenth of a try back."""
    told = play(node, FULL, tokens=4, requests=3)
    assert (["QUEUE_FULL"] * 3, 4, 0) == (told["ends"], told["asked"], told["tokens"])
    told = play(node, FULL, "lost", "answer", tokens=6, requests=2)
    assert (["answer"] * 2, 4) == (told["ends"], told["asked"])
    assert told["tokens"] == pytest.approx(4.2)


def test_all_requests_of_a_client_share_a_budget(node: str) -> None:
    """Also where nobody gives it one: of sixty that fail at once, some dozens are made again."""
    told = play(node, *["lost"] * 60, "answer", requests=60, together=True)
    assert {"answer": 49, "Unavailable": 11} == Counter(told["ends"])
    assert 109 == told["asked"]


def test_a_refusal_says_how_long_to_wait(node: str) -> None:
    """Never less than it asks for; one that names no time is told at once."""
    told = play(node, {"seconds": 0.6}, "answer")
    assert (["answer"], True) == (told["ends"], told["pauses"][0] >= 600)
    told = play(node, {"seconds": None})
    assert (["QUEUE_FULL"], 1) == (told["ends"], told["asked"])
