// The form: what is typed into it, and what is dropped onto it.

import { create } from "@bufbuild/protobuf";

import { CachePolicySchema } from "../gen/reprise/v1/common_pb.js";
import { at } from "./dom.js";

/** What a field holds; nothing if it is empty, so that the model's default holds. */
export function given(name, parse) {
  return at[name].value === "" ? undefined : parse(at[name].value);
}

/** What all requests can wish of the cache, and `more`. */
export function cachePolicy(more = {}) {
  return create(CachePolicySchema, { mode: Number(at.cache.value), fresh: at.fresh.checked, ...more });
}

/** A file can be chosen with `input`, or dropped onto `zone`. */
export function takeFiles(zone, input, take) {
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // so that the same one can be chosen again
    if (file) take(file);
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragover");
      const file = kind === "drop" && event.dataTransfer.files[0];
      if (file) take(file);
    });
  }
}
