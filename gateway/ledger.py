"""Ledger: how requests were answered, what that cost and what it saved. Feeds Prometheus and Stats from one place."""

from __future__ import annotations

from collections import Counter as Counts
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from cache.accesses import AccessLog
from cache.tier import TierName
from gateway.answer import Answer, Outcome

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Ledger:
    """Device time is in seconds, from measured costs. What a cache was asked for is noted in `accesses`."""

    def __init__(self, registry: CollectorRegistry, accesses: AccessLog | None = None) -> None:
        self._accesses = accesses
        self.outcomes: Counts[Outcome] = Counts()
        self.device_seconds_spent = 0.0
        self.device_seconds_saved = 0.0
        self.generations = 0
        self._answers = Counter(
            "reprise_answers", "Requests answered", ["method", "outcome", "tier"], registry=registry
        )
        self._seconds = Histogram(
            "reprise_answer_seconds", "Time to the result", ["method", "outcome"], buckets=_BUCKETS, registry=registry
        )
        self._first_audio = Histogram(
            "reprise_first_audio_seconds",
            "Time until a listener is told the first samples",
            ["outcome", "tier"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._errors = Counter("reprise_refusals", "Requests refused", ["method", "code", "reason"], registry=registry)
        self._spent = Counter("reprise_device_seconds_spent", "Device time spent", registry=registry)
        self._saved = Counter("reprise_device_seconds_saved", "Device time saved", registry=registry)
        self._served = Counter("reprise_artifacts_served", "Answers by URL", ["status"], registry=registry)
        self._served_seconds = Histogram(
            "reprise_artifact_seconds", "Time until an answer by URL begins", buckets=_BUCKETS, registry=registry
        )
        self._sent = Counter("reprise_artifact_bytes", "Bytes sent by URL", registry=registry)
        self._misses = Counter(
            "reprise_misses",
            "Requests that no tier answered: why, and the one field in which the caller's nearest earlier one differs",
            ["reason", "field"],
            registry=registry,
        )
        self._of = cache(self._series)  # finding a series by its labels costs more than counting in it
        self._generations = Counter("reprise_generations", "Generations asked of workers", registry=registry)

    def enter(self, method: str, answer: Answer, seconds: float) -> None:
        self.outcomes[answer.outcome] += 1
        self._account(answer)
        answers, took = self._of(method, answer.outcome, answer.tier)
        answers.inc()
        took.observe(seconds)
        if answer.first_audio is not None:
            tier = answer.tier.value if answer.tier else ""
            self._first_audio.labels(answer.outcome.value, tier).observe(answer.first_audio)
        # Who joined a generation asked for nothing that another cache would have had; nor did who bypassed it.
        if self._accesses is not None and answer.outcome in (Outcome.HIT, Outcome.MISS):
            self._accesses.note(answer.address, answer.record)
        if answer.reason is not None:
            self._misses.labels(answer.reason.value, answer.differing).inc()

    def warmed(self, answer: Answer) -> None:
        """Something was made ahead, or was there: it cost what it cost, and answered nobody."""
        if answer.outcome is Outcome.MISS:
            self._account(answer)

    def _account(self, answer: Answer) -> None:
        self.device_seconds_spent += answer.device_seconds_spent
        self.device_seconds_saved += answer.device_seconds_saved
        self._spent.inc(answer.device_seconds_spent)
        self._saved.inc(answer.device_seconds_saved)

    def _series(self, method: str, outcome: Outcome, tier: TierName | None) -> tuple[Counter, Histogram]:
        answers = self._answers.labels(method, outcome.value, tier.value if tier else "")
        return answers, self._seconds.labels(method, outcome.value)

    def generated(self) -> None:
        self.generations += 1
        self._generations.inc()

    def served(self, status: int, seconds: float) -> None:
        """By URL, `seconds` after it was asked for."""
        self._served.labels(str(status)).inc()
        self._served_seconds.observe(seconds)

    def sent(self, size: int) -> None:
        self._sent.inc(size)

    def refused(self, method: str, code: str, reason: str) -> None:
        self._errors.labels(method, code, reason).inc()
