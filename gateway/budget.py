"""Budget: how often a client may try again, so that many clients do not multiply a load that is too much already.

The rule is that of gRPC's own retries (proposal A6, `retryThrottling`): a try that fails for a reason that may pass
takes a token, an answer gives a fraction of one back, and nothing is tried again while no more than half of them are
left. So a client has some dozens of tries to spare in good times, for a gateway that dies under many streams, say;
where most of its requests fail, it asks again once for every ten answers.
"""

from __future__ import annotations


class RetryBudget:
    """For all requests of one client, or of several that share it."""

    def __init__(self, tokens: float = 100.0, ratio: float = 0.1) -> None:
        if tokens <= 0 or ratio <= 0:
            raise ValueError("a budget needs tokens, and answers that give some back")
        self._most = self.tokens = tokens
        self._ratio = ratio

    def failed(self) -> bool:
        """A try failed for a reason that may pass. Whether another one may be made."""
        self.tokens = max(0.0, self.tokens - 1.0)
        return self.tokens > self._most / 2

    def succeeded(self) -> None:
        self.tokens = min(self._most, self.tokens + self._ratio)
