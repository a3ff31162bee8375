// The playground: asks for a video or for speech, shows it coming into being, then says where it came from.

import { connect } from "./client.js";
import { at } from "./dom.js";
import { Generation } from "./generation.js";
import { Panel } from "./panel.js";
import { Pictures } from "./pictures.js";
import { Speech } from "./speech.js";

// The page may come from elsewhere than its gateway: ?gateway=https://media.example.org
const address = new URLSearchParams(location.search).get("gateway") ?? location.origin;
const modes = [new Pictures(new Panel(at.pictures)), new Speech(new Panel(at.sounds))];
const clients = new Map(); // by API key
const running = new Map(); // mode: its generation
let shown = null; // mode

/** The mode that the address names, so that it can be linked: #speak. */
function current() {
  return modes.find((mode) => `#${mode.name}` === location.hash) ?? modes[0];
}

function showMode() {
  if (shown !== current()) shown?.leave?.();
  shown = current();
  const { name, verb } = shown;
  for (const each of document.querySelectorAll("[data-mode]")) {
    each.hidden = each.dataset.mode !== name;
    if (each.tagName === "FIELDSET") each.disabled = each.hidden; // what is not seen is neither asked for nor required
  }
  for (const link of at.modes.children) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  at.ask.textContent = verb;
  document.title = `${verb} · Reprise playground`;
  showButtons();
}

function showButtons() {
  at.ask.disabled = running.has(current());
  at.cancel.disabled = !at.ask.disabled;
}

/** One for all requests with this key: they share a budget of tries. */
function clientOf(apiKey) {
  if (!clients.has(apiKey)) clients.set(apiKey, connect(address, { apiKey }));
  return clients.get(apiKey);
}

async function generate(mode) {
  const missing = mode.missing();
  if (missing) {
    mode.panel.complain(missing);
    return;
  }
  const generation = new Generation(mode, clientOf(at.apiKey.value));
  running.set(mode, generation);
  showButtons();
  await generation.run();
  running.delete(mode);
  showButtons();
}

at.request.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running.has(current())) generate(current());
});
at.cancel.addEventListener("click", () => running.get(current())?.cancel());
window.addEventListener("hashchange", showMode);
showMode();
