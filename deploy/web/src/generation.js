// One generation, from the request to its answer.

import { Stored_State } from "../gen/reprise/v1/media_pb.js";
import { Pieces } from "./client.js";
import { remember } from "./history.js";
import { sentence } from "./words.js";

/**
 * A mode says what is asked for and shows what comes of it: `ask(client, request, options)` gives the events of
 * `request()`; `begin()` clears the screen; `show(event, ms)` shows an event; `resume(resumed)` hears that the stream
 * broke; `present(result, file)` shows the file and gives its address; `tell(result)` adds facts; `row()` is what the
 * history shows of it; `end()` comes last in any case. Whoever turns to another mode calls `leave()`.
 */
export class Generation {
  #mode;
  #client;
  #abort = new AbortController();
  #name = "";
  #sequence = 0n;

  constructor(mode, client) {
    this.#mode = mode;
    this.#client = client;
  }

  async run() {
    const mode = this.#mode;
    const { panel } = mode;
    const { signal } = this.#abort;
    const started = performance.now();
    const since = () => performance.now() - started;
    const turn = panel.begin();
    mode.begin();
    const clock = setInterval(() => panel.clock(since()), 100);
    try {
      const { result, file } = await this.#follow(mode.request(), since);
      const took = since();
      panel.present(result, await mode.present(result, file), took);
      mode.tell?.(result);
      remember({ ...mode.row(), result, took });
      if (this.#name && result.stored?.state === Stored_State.PENDING) this.#await(panel, turn);
    } catch (error) {
      if (!signal.aborted) panel.complain(sentence(error));
      else panel.doing("Cancelled");
    } finally {
      clearInterval(clock);
      mode.end();
      panel.end(signal.aborted);
    }
  }

  /** Leaves the stream, and says that nobody here waits for it any more: else the work would go on for a grace. */
  async cancel() {
    this.#abort.abort();
    if (this.#name) await this.#client.cancel({ name: this.#name }).catch(() => {});
  }

  async #follow(request, since) {
    const mode = this.#mode;
    const pieces = new Pieces();
    const onResume = (resumed) => {
      mode.panel.doing(resumed.name ? "The stream broke; picking it up again" : "Asking again");
      mode.resume?.(resumed);
    };
    let result;
    for await (const event of mode.ask(this.#client, request, { signal: this.#abort.signal, onResume })) {
      pieces.add(event);
      this.#name = event.accepted?.name ?? this.#name;
      this.#sequence = event.sequence;
      mode.panel.show(event);
      mode.show(event, since());
      result = event.result;
    }
    return { result, file: new Blob([pieces.join()], { type: result.mediaType }) };
  }

  /** After the result, until the artifact is durable. Nobody waits for it: nothing is made of a broken stream. */
  async #await(panel, turn) {
    try {
      for await (const { event } of this.#client.watch({ name: this.#name, fromSequence: this.#sequence + 1n })) {
        if (event.stored) panel.stored(event.stored, turn);
      }
    } catch {
      panel.stored(undefined, turn);
    }
  }
}
