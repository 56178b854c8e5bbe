// What somebody has judged: a list, the latest first, each line with a button that opens it again.

import * as server from "./server.js";
import { el } from "./elements.js";
import { button } from "./forms.js";

const when = (created) => (created ? new Date(created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "");

// Elements for the page; `open(item)` shows one again, `back()` goes on judging.
export async function ownJudgements(open, back) {
  const rows = el("ol", { class: "own" });
  const more = button("Earlier ones", "", () => add(), { hidden: true });
  let last = null;

  async function add() {
    const said = await server.own(last);
    const drawn = said.votes.map((vote) => row(vote, open));
    rows.append(...drawn);
    last = said.votes.at(-1)?.number ?? last;
    more.hidden = !said.more;
    if (rows.children.length > drawn.length) drawn[0]?.querySelector("button").focus();
  }
  await add();
  const title = el("h2", { tabindex: "-1" }, "Your judgements");
  return {
    title,
    nodes: [
      title,
      el("p", { class: "guidelines" }, rows.children.length ? "A vote stands until you give another one. Nobody but you and whoever asked sees this list." : "You have not judged anything yet."),
      rows,
      more,
      el("div", { class: "actions" }, button("Back to judging", "Escape", back, { class: "main" })),
    ],
  };
}

function row({ item, prompt, said, note, flag, created }, open) {
  return el(
    "li",
    {},
    el(
      "div",
      {},
      el("p", { class: "asked", dir: "auto" }, prompt || "empty prompt"),
      el("p", { class: "said" }, el("strong", {}, said), flag ? el("span", { class: "flagged" }, "flagged") : "", el("span", { class: "fine" }, when(created))),
      note ? el("p", { class: "note", dir: "auto" }, note) : "",
    ),
    el("button", { type: "button", onclick: () => open(item), "aria-label": `Look again: ${said}, ${prompt.slice(0, 80)}` }, "Look again"),
  );
}
