// What a program in JavaScript needs to call Reprise by grpc-web: a browser, Node, anything with `fetch`.

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { MediaService } from "../gen/reprise/v1/media_pb.js";
import { RetryBudget } from "./budget.js";

const BUDGETS = new WeakMap(); // of each client, for all its requests
const PATIENCE_MS = [200, 500, 1000, 2000, 4000]; // at most, between attempts to pick a broken stream up again

/** A client of the gateways behind `address`, such as http://localhost:8080. */
export function connect(address, { apiKey = "", interceptors = [] } = {}) {
  const authorize = (next) => (request) => {
    if (apiKey) request.header.set("authorization", `Bearer ${apiKey}`);
    return next(request);
  };
  const transport = createGrpcWebTransport({ baseUrl: address, interceptors: [authorize, ...interceptors] });
  return createClient(MediaService, transport);
}

/**
 * The events of a video's generation up to its result. A stream that breaks is picked up where it broke; if no gateway
 * knows the generation any more, or it failed for a reason that passes (no worker, no room), the request is made again,
 * which costs nothing that is stored already: its events then begin anew with another name. A `fresh` request asks for
 * the seed that it was told. `timeoutMs` bounds all of it, pauses included; without it a few tries in a row do. All
 * requests of a client share a `budget` of tries (see budget.js), so that they do not multiply a load that is too much.
 * `onResume` hears the name, empty if the request is made again. Throws ConnectError: what the service refused, or
 * Canceled by `signal`.
 */
export function animate(client, request, options) {
  return make(client, (asked, call) => client.animateImage(asked, call), request, options);
}

/**
 * The same for speech. Of a `live` request no sample is told twice: whatever breaks, the sound goes on where it was.
 * Only where `onResume` is told the reason SOUND_CHANGED it begins anew, from its first sample.
 */
export async function* speak(client, request, options = {}) {
  let ear = new Ear();
  const onResume = (resumed) => {
    if (resumed.reason === "SOUND_CHANGED") ear = new Ear();
    options.onResume?.(resumed);
  };
  const events = make(client, (asked, call) => client.synthesizeSpeech(asked, call), request, { ...options, onResume });
  for await (const event of events) {
    const news = ear.unheard(event);
    if (news) yield news;
  }
}

async function* make(client, ask, request, { signal, timeoutMs, budget, onResume = () => {}, onTrailer } = {}) {
  budget ??= budgetOf(client);
  const until = timeoutMs === undefined ? Infinity : performance.now() + timeoutMs;
  const left = () => Math.max(1, Math.round(until - performance.now())); // gRPC takes whole ones only
  const options = () => ({ signal, onTrailer, ...(timeoutMs !== undefined && { timeoutMs: left() }) });
  let stream = ask(request, options());
  let name = "";
  let sequence = 0n;
  let watching = false; // such a stream goes on after the result
  for (let failures = 0, refusals = 0, finished = false; ; ) {
    try {
      for await (const { event } of stream) {
        failures = 0;
        sequence = event.sequence;
        name = event.accepted?.name ?? name;
        if (event.accepted) request = sameAgain(request, event.accepted.seed);
        finished = Boolean(event.result);
        yield event;
        if (finished && watching) return budget.succeeded();
      }
      if (finished) return budget.succeeded();
      throw new ConnectError("the stream ended before its result", Code.Unavailable);
    } catch (error) {
      if (finished) return;
      const again = unknownGeneration(error) || passes(error);
      // Progress makes up for broken streams, not for refusals: a request that ends every worker must end itself.
      const count = passes(error) ? refusals++ : failures++;
      const { reason, retrySeconds } = explain(error);
      const wait = Math.max(pauseMs(count), 1000 * (retrySeconds ?? 0));
      const spent = until === Infinity ? count >= PATIENCE_MS.length : performance.now() + wait >= until;
      if (!(broken(error) || again) || !budget.failed() || spent) throw error;
      if (again) [name, sequence] = ["", 0n];
      await pause(wait, signal);
      onResume({ name, from: sequence + 1n, reason });
      watching = Boolean(name);
      stream = watching ? client.watch({ name, fromSequence: sequence + 1n }, options()) : ask(request, options());
    }
  }
}

function budgetOf(client) {
  if (!BUDGETS.has(client)) BUDGETS.set(client, new RetryBudget());
  return BUDGETS.get(client);
}

/** Keeps track of live sound, so that nobody hears a sample twice. */
class Ear {
  #tuned = false;
  #heard = 0; // samples

  /** The event, without what was heard before; nothing if that is all there is. */
  unheard(event) {
    if (event.sound) {
      if (this.#tuned) return undefined;
      this.#tuned = true;
    }
    if (event.samples) {
      const offset = Number(event.samples.offset);
      const end = offset + event.samples.pcm.length / 2;
      if (end <= this.#heard) return undefined;
      if (offset < this.#heard) {
        event.samples.pcm = event.samples.pcm.subarray(2 * (this.#heard - offset));
        event.samples.offset = BigInt(this.#heard);
      }
      this.#heard = end;
    }
    return event;
  }
}

/** The file, from the chunks of a generation's events. */
export class Pieces {
  #chunks = new Map();

  add(event) {
    if (event.chunk) this.#chunks.set(event.chunk.offset, event.chunk.data);
  }

  join() {
    const sorted = [...this.#chunks].sort(([a], [b]) => (a < b ? -1 : 1));
    const whole = new Uint8Array(sorted.reduce((size, [, data]) => size + data.length, 0));
    for (const [offset, data] of sorted) whole.set(data, Number(offset));
    return whole;
  }
}

/** An error in plain words: its code, the service's reason, the field at fault, when to try again. */
export function explain(thrown) {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  return {
    code: Code[error.code],
    reason: info?.reason ?? "",
    field: bad?.fieldViolations[0]?.field ?? "",
    message: error.rawMessage,
    retrySeconds: delay ? Number(delay.seconds) + delay.nanos / 1e9 : null,
  };
}

/** The service says why it refuses; what comes without a reason came from the way there. */
function broken(error) {
  const { code, reason } = explain(error);
  return !reason && !["Canceled", "DeadlineExceeded", "ResourceExhausted", "Unimplemented"].includes(code);
}

/** The service refuses for a reason that may be gone in a moment. */
function passes(error) {
  const { code, reason, retrySeconds } = explain(error);
  return Boolean(reason) && (code === "Unavailable" || (code === "ResourceExhausted" && retrySeconds !== null));
}

function unknownGeneration(error) {
  return explain(error).reason === "GENERATION_UNKNOWN";
}

/** Variety that was drawn once is not drawn again. */
function sameAgain(request, seed) {
  if (!request.cachePolicy?.fresh) return request;
  return { ...request, seed, cachePolicy: { ...request.cachePolicy, fresh: false } };
}

function pauseMs(failures) {
  return PATIENCE_MS[Math.min(failures, PATIENCE_MS.length - 1)] * (0.5 + Math.random() / 2);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new ConnectError("cancelled", Code.Canceled));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
  });
}
