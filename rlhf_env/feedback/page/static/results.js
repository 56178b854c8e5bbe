// The results: win rates, ratings and what people said of reward models, counted anew while this page is open.

import * as server from "./server.js";
import { el } from "./elements.js";

const $ = (id) => document.getElementById(id);
const AGAIN = 5000; // ms
const TOKEN = "owner's token";

const percent = (number) => `${Math.round(100 * number)} %`;
const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
const range = ([value, low, high], write) => write(value) + (low === null ? " (no interval: every prompt alike)" : ` (${write(low)} to ${write(high)})`);
const whole = (number) => (Math.round(number) || 0).toLocaleString(); // no "-0"

const SVG = document.querySelector("svg").namespaceURI; // the page has an empty one: nothing here names an address
const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
// A share with its interval on a line from 0 to 1, and a mark that it is to be compared with.
function picture([value, low, high], mark) {
  const at = (share) => `${2 + 96 * share}%`;
  return svg(
    "svg",
    { class: "interval", "aria-hidden": "true" },
    svg("line", { class: "whole", x1: at(0), x2: at(1), y1: 12, y2: 12 }),
    svg("line", { class: "mark", x1: at(mark), x2: at(mark), y1: 3, y2: 21 }),
    svg("line", { class: "range", x1: at(low), x2: at(high), y1: 12, y2: 12 }),
    svg("circle", { cx: at(value), cy: 12, r: 5 }),
  );
}

const row = (name, why, drawn, ...facts) =>
  el(
    "li",
    {},
    el("div", {}, el("h3", { class: "name" }, name), el("p", { class: "fine" }, why)),
    drawn,
    el("dl", {}, ...facts.filter(Boolean).flatMap(([what, said]) => [el("dt", {}, what), el("dd", {}, said)])),
  );

function contest({ criterion, contenders }) {
  return el(
    "section",
    { class: "panel" },
    el("h2", {}, criterion === "overall" ? "Who is better" : `Who is better by “${criterion}”`),
    el(
      "ol",
      { class: "rows" },
      ...contenders.map((it) =>
        row(
          it.name,
          "",
          picture(it.win_rate, 0.5),
          ["Win rate", range(it.win_rate, percent)],
          ["Rating", it.rating === null ? "not comparable: not everybody met, through others at least" : range(it.rating, whole)],
          ["Comparisons", it.comparisons.toLocaleString()],
        ),
      ),
    ),
    el("p", { class: "fine" }, "Win rate: the share of comparisons won, ties counting half; the mark is one half. Rating: Bradley–Terry on Elo’s scale, 400 points are odds of ten to one, the mean is 0. In brackets: 95 % intervals, resampling prompts."),
  );
}

function verified(model, rows) {
  return el(
    "section",
    { class: "panel" },
    el("h2", {}, "Do annotators share the reward model’s opinion?"),
    el("p", { class: "guidelines" }, model),
    el(
      "ol",
      { class: "rows" },
      ...rows.map((it) =>
        row(
          it.reason,
          it.why,
          it.agreement ? picture(it.agreement, it.stated) : "",
          ["People agree", it.agreement ? range(it.agreement, percent) : "no verdict yet"],
          it.agreement && ["The model expects", percent(it.stated)],
          ["Pairs, votes", `${it.pairs.toLocaleString()}, ${it.votes.toLocaleString()}`],
        ),
      ),
    ),
    el("p", { class: "fine" }, "By the reason for which pairs were chosen; read the others against “random”. The mark is what the model expects: it is too sure where people agree less often. In brackets: Wilson’s 95 % intervals, prompts being the trials."),
  );
}

function known(rows) {
  return el(
    "section",
    { class: "panel" },
    el("h2", {}, "Control questions"),
    el(
      "ol",
      { class: "rows" },
      ...rows.map((it) => row(it.annotator, "", picture(it.share, 1), ["Right", range(it.share, percent)], ["Answered", it.answered.toLocaleString()], it.undecided ? ["Without an opinion", it.undecided.toLocaleString()] : null)),
    ),
    el("p", { class: "fine" }, "How often each annotator gave the answer that is known; a score is right within one step. In brackets: Wilson’s 95 % intervals."),
  );
}

function agreed(rows) {
  return el(
    "section",
    { class: "panel" },
    el("h2", {}, "Agreement"),
    el(
      "ol",
      { class: "rows" },
      ...rows.map((it) =>
        row(
          `${it.kind}, ${it.criterion}`,
          `${count(it.judgements, "judgement")} by ${count(it.annotators, "annotator")}; ${count(it.units, "item")} judged by two or more`,
          it.agreement ? picture(it.agreement, 1) : "",
          ["Said the same", it.agreement ? range(it.agreement, percent) : "judged by one person each"],
          it.alpha && ["Krippendorff’s α", range(it.alpha, (x) => x.toFixed(2))],
          it.self_consistency && ["Same again", range(it.self_consistency, percent)],
          it.seconds && ["Seconds each", range(it.seconds, (x) => x.toFixed(1))],
        ),
      ),
    ),
  );
}

function show({ progress, contests, verified: checks, agreement, controls }) {
  const { votes, wanted, complete, items } = progress;
  $("progress").hidden = false;
  $("meter").max = Math.max(1, wanted);
  $("meter").value = votes;
  $("counts").textContent = `${votes.toLocaleString()} of ${wanted.toLocaleString()} votes · ${complete.toLocaleString()} of ${items.toLocaleString()} items complete`;
  const models = [...new Set(checks.map((it) => it.model))];
  const parts = [...contests.map(contest), ...models.map((model) => verified(model, checks.filter((it) => it.model === model))), ...(agreement.length ? [agreed(agreement)] : []), ...(controls.length ? [known(controls)] : [])];
  const nothing = el("section", { class: "panel done" }, el("h2", {}, "No results yet"), el("p", {}, "“rlhf-env preferences evaluate” has authors compared, “rlhf-env preferences verify” a reward model checked."));
  $("results").replaceChildren(...(parts.length ? parts : [nothing]));
}

const notice = (text) => $("notice").replaceChildren(...(text ? [el("p", {}, text)] : []));

async function look() {
  try {
    show(await server.results(sessionStorage.getItem(TOKEN)));
    notice("");
  } catch (error) {
    const refused = error instanceof server.Refused;
    notice(refused ? error.message : "The server cannot be reached. These results may be old; looking again.");
    if (refused) $("results").replaceChildren();
    if (error.status === 401) return; // asking again would not change it
  }
  setTimeout(look, AGAIN);
}

addEventListener("hashchange", () => location.reload()); // a link opened in this tab loads nothing by itself
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  sessionStorage.setItem(TOKEN, token);
  history.replaceState(null, "", "/results"); // out of the address bar and of the history
}
await server.session().catch(() => null); // the owner has none
look();
