// The page of `rlhf-env watch`: a run, or a grid whose cells are runs. "#run=task/agent/seed" is one of them.

import { el } from "./elements.js";
import { Grid } from "./grid.js";
import { Run } from "./run.js";

const $ = (id) => document.getElementById(id);
const AGAIN = 2000; // ms
const SOON = 50; // where a long log is still being read

class Refused extends Error {
  constructor(status, problems) {
    super(problems.join("; "));
    this.status = status;
  }
}

export async function post(what, body) {
  const response = await fetch(`/api/${what}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(40_000),
  });
  const said = await response.json().catch(() => ({ problems: [`the server answered ${response.status}`] }));
  if (!response.ok) throw new Refused(response.status, said.problems);
  return said;
}

export const head = {
  title(text, whole = text) {
    $("title").replaceChildren(...[text].flat());
    document.title = whole;
  },
  state(text) {
    if ($("state").textContent !== text) $("state").textContent = text; // read aloud when it changes, and not each time
  },
  progress(share, text) {
    $("progress").hidden = share === null;
    $("meter").value = share ?? 0;
    $("counts").textContent = text;
  },
};

const notice = (text) => $("notice").textContent !== (text ?? "") && $("notice").replaceChildren(...(text ? [el("p", {}, text)] : []));

let shown = null; // what is looked at: it has `look()`, which gives the share still to be read
let turn = 0; // of what is looked at; what an older one hears is not shown any more

async function look(mine) {
  let wait = AGAIN;
  try {
    const left = await shown.look();
    if (mine !== turn) return;
    notice(left > 0 ? `Reading the log: ${Math.floor(100 * (1 - left))} %` : "");
    if (left > 0) wait = SOON;
  } catch (error) {
    if (mine !== turn) return;
    const refused = error instanceof Refused;
    notice(refused ? error.message : "The page’s server cannot be reached: rlhf-env watch has ended. What is seen may be old; looking again.");
    if (error.status === 401) return; // asking again would not change it
    if (!refused && !(error instanceof TypeError) && error.name !== "TimeoutError") console.error(error);
  }
  setTimeout(() => mine === turn && look(mine), document.hidden ? 5 * wait : wait);
}

function open(kind) {
  const cell = new URLSearchParams(location.hash.slice(1)).get("run");
  turn += 1;
  shown = kind === "grid" && cell === null ? new Grid($("seen")) : new Run($("seen"), cell);
  scrollTo(0, 0);
  return look(turn);
}

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  try {
    let kind;
    if (token !== null) {
      kind = (await post("enter", { token })).kind;
      history.replaceState(null, "", "/"); // out of the address bar and of the history
    } else kind = (await post("grid", {})).kind;
    addEventListener("hashchange", () => (location.hash.includes("token=") ? location.reload() : open(kind)));
    await open(kind);
  } catch (error) {
    notice(error instanceof Refused ? error.message : "The page’s server cannot be reached.");
  }
}

begin();
