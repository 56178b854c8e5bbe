// Elements of a page. Strings become text nodes: nothing that was written by others is ever read as HTML.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange") made[name] = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// The server writes what cannot be seen as ⟨U+202E⟩; here it gets a colour that plain text cannot have.
export const shown = (text) => text.split(/(⟨U\+[0-9A-F]{4,6}⟩)/).map((part, i) => (i % 2 ? el("span", { class: "unseen" }, part) : part));
