// The page's elements, and new ones.

/** Every element of the page that has an id, by it. */
export const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));

export function element(tag, content = "", className = "") {
  const made = document.createElement(tag);
  made.append(content);
  if (className) made.className = className;
  return made;
}

/** Addresses of bytes of which one at a time is shown: the one before is given back. */
export class Place {
  #url = "";

  put(blob) {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(blob);
    return this.#url;
  }
}
