// How often a client may try again, so that many clients do not multiply a load that is too much already. The rule is
// that of gRPC's own retries (proposal A6, retryThrottling), and of gateway/budget.py.

/** For all requests of one client. */
export class RetryBudget {
  #most;
  #ratio;

  constructor(tokens = 100, ratio = 0.1) {
    this.tokens = this.#most = tokens;
    this.#ratio = ratio;
  }

  /** A try failed for a reason that may pass. Whether another one may be made. */
  failed() {
    this.tokens = Math.max(0, this.tokens - 1);
    return this.tokens > this.#most / 2;
  }

  succeeded() {
    this.tokens = Math.min(this.#most, this.tokens + this.#ratio);
  }
}
