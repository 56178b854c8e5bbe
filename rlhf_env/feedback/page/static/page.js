// The page: who is judging, one item after the other, and what went wrong, in words.

import * as server from "./server.js";
import { el, shown } from "./elements.js";
import { button, controlsOf } from "./forms.js";
import { isMarkdown, markdown } from "./markdown.js";
import { ownJudgements } from "./own.js";

const $ = (id) => document.getElementById(id);
const SETTLE = 400; // ms: the second half of a double click must not judge the next item
const WAITING = " – trying again. What you judged is kept: leave this tab open. If it lasts, “rlhf-env annotate” has to be started again, on the same port.";
const PURPOSES = {
  evaluation: "A blind comparison: who wrote which response is not shown.",
  verification: "You are checking a reward model here. What it thinks is not shown: judge as you always do.",
};

let controls = null; // of the item shown; null while there is none, or while a vote is on its way
let shownAt = 0;
let hiddenFor = 0;
let hiddenSince = 0;
let expiry = 0;
let current = null; // what was shown last, to be drawn again
let readAt = 0; // how far down one was when the guidelines were opened
let formatted = localStorage.getItem("plain text") !== "on";

// ---------------------------------------------------------------- text that others wrote

function written({ text, length = null }) {
  const rendered = formatted && isMarkdown(text);
  const nodes = rendered ? markdown(text) : shown(text);
  if (length !== null) nodes.push(el("span", { class: "unseen" }, ` cut here: ${length.toLocaleString()} characters in all`));
  return el("div", { class: rendered ? "text md" : "text", dir: "auto" }, ...(text ? nodes : [el("span", { class: "unseen" }, "empty")]));
}

// A prompt; of a conversation each turn with who says it.
const asked = (prompt) => (prompt.turns ? prompt.turns.flatMap((turn) => [turn.role ? el("p", { class: "role" }, turn.role) : "", written(turn)]) : [written(prompt)]);

function notice(text, ...more) {
  $("notice").replaceChildren(...(text ? [el("p", {}, text, ...more)] : []));
}

const waiting = (why) => notice(why + WAITING);

// ---------------------------------------------------------------- who is judging

function ask(token, problem, back = null) {
  leave();
  const name = el("input", { id: "annotator", autocomplete: "nickname", maxlength: "100", required: true });
  const form = el(
    "form",
    { class: "panel enter" },
    el("h2", {}, "Who is judging?"),
    el("p", {}, "Your name is kept with every judgement. Use the same one each time."),
    el("label", { for: "annotator" }, "Your name"),
    name,
    el("button", { class: "main" }, "Start"),
    back ? button("Cancel", "", back) : "",
  );
  form.onsubmit = async (event) => {
    event.preventDefault();
    try {
      const said = await server.enter(token, name.value);
      server.forget();
      begin(said);
    } catch (error) {
      notice(error.message);
    }
  };
  $("task").replaceChildren(form);
  notice(problem ?? "");
  name.focus();
}

function leave() {
  controls = null;
  clearTimeout(expiry);
  $("who").hidden = $("progress").hidden = document.querySelector("footer").hidden = $("guidelines").hidden = true;
}

async function begin({ annotator, guidelines }) {
  const lost = server.belongsTo(annotator);
  guide(guidelines);
  $("name").textContent = annotator;
  $("who").hidden = $("progress").hidden = document.querySelector("footer").hidden = false;
  await attempt(
    () => (server.pending() ? delivered() : history.state?.item ? again(history.state.item) : server.next(waiting)),
    () => (lost === null ? "" : `${annotator} is judging in this browser now. The last vote of ${lost} in this tab was not counted: ${lost} can give it again.`),
  );
}

// Open for whoever has not seen them, or not like this.
function guide(text) {
  $("guidelines").hidden = !text;
  if (!text) return;
  $("guidelines").lastElementChild.replaceChildren(...markdown(text));
  if (localStorage.getItem("guidelines") !== text) $("guidelines").open = true;
  localStorage.setItem("guidelines", text);
}

// Another tab has changed who judges in this browser, or has begun a new session: this one follows.
async function follow(error) {
  const known = await server.session();
  if (known.annotator === null) ask(null, error.message);
  else await begin(known);
}

// ---------------------------------------------------------------- one item after the other

// Do something that ends in the next item being shown, or in an explanation.
async function attempt(request, said = () => "") {
  const before = controls;
  controls = null;
  document.body.classList.add("busy");
  try {
    const answer = await request();
    show(answer);
    notice(said(answer));
  } catch (error) {
    if (error.status === 409) {
      await attempt(
        () => server.next(waiting),
        () => `Your vote was not counted: ${error.message}. Here is the next one.`,
      );
    } else if (error.status === 403 && before !== null) {
      await follow(error).catch((again) => notice(again.message ?? String(again)));
    } else if (error.status === 401) {
      ask(null, error.message);
    } else {
      controls = before;
      notice(error.message ?? String(error), " ", el("button", { type: "button", onclick: () => location.reload() }, "Load the page again"));
    }
  } finally {
    document.body.classList.remove("busy");
  }
}

const resume = () => attempt(() => server.next(waiting));

// `vote` is what the item was judged with earlier: it stands until another one is given.
function show({ item, progress, vote = null }) {
  current = { item, progress, vote };
  count(progress);
  clearTimeout(expiry);
  const undo = vote ? button("Keep my vote", "Escape", resume, { class: "undo" }) : button("Undo", "u", takeBack, { class: "undo", disabled: !progress.own });
  history.replaceState(vote ? { item: item.id } : null, "", "/");
  if (item === null) {
    const left = progress.wanted - progress.votes;
    const why = !progress.items
      ? "Nothing was asked for yet: “rlhf-env preferences ask”, “evaluate” and “verify” make items."
      : left
        ? `${left} votes are still to come, from others or of items that others hold now.`
        : "Every item has the votes it asks for: the results are open.";
    const again = button("Look again", "r", resume, { class: "main" });
    $("task").replaceChildren(el("section", { class: "panel done" }, el("h2", {}, "Nothing left for you"), el("p", {}, why)), el("div", { class: "actions" }, undo, again));
    controls = { keys: [["r", "Look again"]], press: (key) => key === "r" && (again.click(), true) };
  } else {
    const { nodes: aside, given, toggle } = beside(item, vote);
    const draft = vote ? null : server.draft(item).form;
    const keep = (form) => vote || server.keepDraft({ ...server.draft(item), form });
    controls = controlsOf(item, (said) => submit(item, { ...said, ...given(), instead: vote !== null }), { said: vote, draft, keep });
    controls.beside = toggle;
    const { question, card, above, layout, actions } = controls;
    const { guidelines } = item.form;
    const title = el("h2", { tabindex: "-1" }, question);
    const many = item.responses.length > 1;
    $("task").replaceChildren(
      title,
      vote ? el("p", { class: "purpose" }, "You have judged this. Your vote stands until you give another one.") : "",
      item.purpose in PURPOSES ? el("p", { class: "purpose" }, PURPOSES[item.purpose]) : "",
      guidelines ? el("p", { class: "guidelines" }, guidelines) : "",
      el("section", { class: "prompt", "aria-label": "Prompt" }, el("h3", {}, "Prompt"), ...asked(item.prompt)),
      el(
        "div",
        { class: many ? "responses" : "responses single" },
        ...item.responses.map((response, i) => {
          const label = many ? `Response ${i + 1}` : "Response";
          const below = card(i);
          return el("article", { class: "panel", "aria-label": label }, el("h3", {}, label), written(response), below.length ? el("div", { class: controls.twice ? "choose twice" : "choose" }, ...below) : "");
        }),
      ),
      ...above,
      ...aside,
      el("div", { class: `actions ${layout}`.trim(), role: "group", "aria-label": "Your judgement" }, ...actions, undo),
    );
    title.focus({ preventScroll: true });
    scrollTo(0, 0);
    if (!vote) expiry = setTimeout(runOut, Math.min(item.lease * 1000, 2 ** 31 - 1));
  }
  $("agreement").hidden = item !== null || progress.votes < progress.wanted;
  if (!$("agreement").hidden) compare();
  settle();
}

// Keys count from now on, after a moment.
function settle() {
  const comment = controls.beside ? [["c", "Comment"], ["f", "Flag"], ["m", "Formatted or plain text"]] : [];
  const last = current.vote ? ["Escape", "Keep your vote"] : ["u", "Undo the last vote"];
  const keys = [...controls.keys, ...comment, ["v", "Your judgements"], ["g", "Guidelines"], last];
  $("shortcuts").replaceChildren(...keys.flatMap(([key, meaning]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, meaning)]));
  shownAt = performance.now();
  hiddenFor = 0;
  hiddenSince = document.hidden ? shownAt : 0;
}

// The comment and the flag, where the kind of judgement has room for them. `given()` is what stands in them.
function beside(item, vote) {
  const { comment, flag } = item.form;
  if (!comment && !flag) return { nodes: [], given: () => ({}), toggle: null };
  const before = vote ?? server.draft(item);
  const words = el("textarea", { id: "comment", rows: "2", maxlength: "10000", "aria-keyshortcuts": "c" });
  const box = el("input", { id: "flag", type: "checkbox", "aria-keyshortcuts": "f" });
  const given = () => ({ ...(comment ? { note: words.value } : {}), ...(flag ? { flag: box.checked } : {}) });
  const keep = () => vote || server.keepDraft({ ...server.draft(item), ...given() });
  words.value = before.note;
  box.checked = before.flag;
  words.oninput = box.onchange = keep;
  const label = el("summary", {}, "Comment or flag ", el("kbd", {}, "c"));
  const details = el(
    "details",
    { class: "beside", open: Boolean(before.note || before.flag) },
    label,
    ...(comment ? [el("label", { for: "comment" }, "Comment, kept with your judgement"), words] : []),
    ...(flag ? [el("label", { class: "flag" }, box, " Flag this for whoever asked ", el("kbd", {}, "f"))] : []),
  );
  const texts = [item.prompt, ...(item.prompt.turns ?? []), ...item.responses];
  const plain = el("button", { type: "button", class: "link", onclick: () => replain(), "aria-keyshortcuts": "m", hidden: !texts.some(({ text }) => isMarkdown(text)) }, formatted ? "Show plain text" : "Show formatted text");
  return {
    nodes: [el("div", { class: "reading" }, details, plain)],
    given,
    toggle(key) {
      if (key === "c" && comment) {
        details.open = true;
        words.focus();
      } else if (key === "f" && flag) {
        details.open = true;
        box.checked = !box.checked;
        keep();
      } else if (key === "m") replain();
      else return false;
      return true;
    },
  };
}

// The same item with its texts as they were written, or as Markdown means them.
function replain() {
  formatted = !formatted;
  localStorage.setItem("plain text", formatted ? "off" : "on");
  const { item } = current;
  const texts = [...(item.prompt.turns ?? [item.prompt]), ...item.responses];
  document.querySelectorAll("#task .text").forEach((old, i) => old.replaceWith(written(texts[i])));
  document.querySelector(".reading > .link").textContent = formatted ? "Show plain text" : "Show formatted text";
}

// ---------------------------------------------------------------- what was judged before

// One's own vote on an item. It may be gone: taken back in another tab.
async function again(item) {
  try {
    return await server.reopen(item);
  } catch (error) {
    if (error.status !== 409) throw error;
    return server.next(waiting);
  }
}

const lookAgain = (item) => {
  history.pushState({ item }, "", "/");
  return attempt(() => again(item));
};

async function listOwn() {
  if (!settled()) return;
  try {
    const { nodes, title } = await ownJudgements(lookAgain, resume);
    clearTimeout(expiry);
    controls = { keys: [["Escape", "Back to judging"]], press: (key) => key === "Escape" && (resume(), true) };
    $("task").replaceChildren(...nodes);
    notice("");
    title.focus({ preventScroll: true });
    scrollTo(0, 0);
    settle();
  } catch (error) {
    notice(error.message ?? String(error));
  }
}

// The browser's Back leads to the item judged before this one, whose vote stands.
addEventListener("popstate", ({ state }) => {
  if (controls !== null) attempt(() => (state?.item ? again(state.item) : server.next(waiting)));
});

function leadBackTo(item) {
  history.replaceState({ item }, "", "/");
  history.pushState(null, "", "/");
}

// A vote that had no answer when the page was left or loaded again.
async function delivered() {
  const { item } = server.pending();
  const answer = await server.deliver(waiting);
  leadBackTo(item);
  return answer;
}

const settled = () => controls !== null && performance.now() - shownAt > SETTLE;

function submit(item, said) {
  if (!settled()) return;
  const hidden = hiddenFor + (hiddenSince ? performance.now() - hiddenSince : 0);
  const seconds = Math.max(0, performance.now() - shownAt - hidden) / 1000;
  const sent = async () => {
    const answer = await server.vote(item, said, seconds, waiting);
    leadBackTo(item.id);
    return answer;
  };
  const told = (answer) => (answer.new ? (said.instead ? "Changed: this vote stands now." : "") : "You had judged that one before: the first vote stands.");
  attempt(sent, told);
}

function takeBack() {
  if (!settled()) return;
  attempt(() => server.undo(waiting), (said) => (said.undone === null ? "There is no vote of yours to take back." : "Taken back: judge it again."));
}

function runOut() {
  const again = el("button", { type: "button", onclick: () => attempt(() => server.next(waiting)) }, "Ask for it again");
  notice("This item was kept for you for a while, and is now free for others. Your vote counts if nobody else took it.", " ", again);
}

// ---------------------------------------------------------------- how it goes

function count({ votes, wanted, own, open }) {
  $("meter").max = Math.max(1, wanted);
  $("meter").value = votes;
  $("counts").textContent = `${votes.toLocaleString()} of ${wanted.toLocaleString()} votes · ${own.toLocaleString()} yours · ${open.toLocaleString()} open to you`;
}

const percent = (number) => `${Math.round(100 * number)} %`;
const spread = (found, write) => (found === null ? "–" : `${write(found[0])} (${write(found[1])} to ${write(found[2])})`);

async function compare() {
  try {
    const { agreement } = await server.agreement();
    const heads = ["", "Judgements by annotators", "By two or more", "Said the same", "Krippendorff’s α", "Same again", "Seconds each"];
    const rows = agreement.map((it) => [
      `${it.kind}, ${it.criterion}`,
      `${it.judgements.toLocaleString()} by ${it.annotators}`,
      it.units.toLocaleString(),
      spread(it.agreement, percent),
      spread(it.alpha, (x) => x.toFixed(2)),
      spread(it.self_consistency, percent),
      spread(it.seconds, (x) => x.toFixed(1)),
    ]);
    const shares = agreement.filter((it) => it.agreement).map((it) => `${percent(it.agreement[0])} said the same (${it.kind}, ${it.criterion})`);
    $("agreement").firstChild.textContent = ["Agreement", ...shares.slice(0, 3)].join(" · ");
    $("agreements").replaceChildren(
      agreement.length
        ? el(
            "table",
            {},
            el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
            el("tbody", {}, ...rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => el("td", {}, cell))))),
          )
        : el("p", {}, "No judgements yet."),
      el("p", { class: "fine" }, "In brackets: 95 % intervals."),
    );
  } catch (error) {
    $("agreements").replaceChildren(el("p", {}, error.message));
  }
}

// ---------------------------------------------------------------- keyboard, tab, start

document.addEventListener("keydown", (event) => {
  const plain = !(event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing);
  const typing = event.target.matches("input:not([type=radio]), textarea");
  const presses = event.key === "Enter" && event.target.matches("button, summary, a"); // what has the focus
  if (!plain || typing || presses || !$("keys").checked || !settled()) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (current.vote && key === "Escape") resume();
  else if (key === "u" && !current.vote) takeBack();
  else if (key === "?") $("help").open = !$("help").open;
  else if (!controls.press(key) && !controls.beside?.(key) && !elsewhere(key)) return;
  event.preventDefault();
});

function elsewhere(key) {
  if (key === "v") listOwn();
  else if (key === "g" && !$("guidelines").hidden) turnToGuidelines();
  else return false;
  return true;
}

// They stand above the item, which may be long: shown, they are gone to, and put away, one is back where one was.
function turnToGuidelines() {
  const guidelines = $("guidelines");
  if (!guidelines.open) {
    readAt = scrollY;
    guidelines.open = true;
    guidelines.scrollIntoView({ block: "nearest" });
    guidelines.firstElementChild.focus({ preventScroll: true });
  } else {
    guidelines.open = false;
    document.querySelector("#task h2")?.focus({ preventScroll: true });
    scrollTo(0, readAt);
  }
}

// Out of the comment by Escape, to the keys that judge.
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.matches("#task textarea")) document.querySelector("#task h2").focus({ preventScroll: true });
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = performance.now();
  else if (hiddenSince) [hiddenFor, hiddenSince] = [hiddenFor + performance.now() - hiddenSince, 0];
});

$("keys").checked = localStorage.getItem("keys") !== "off";
$("keys").addEventListener("change", () => localStorage.setItem("keys", $("keys").checked ? "on" : "off"));
$("own").addEventListener("click", listOwn);
$("switch").addEventListener("click", () => ask(null, "", () => server.session().then(begin, (error) => notice(error.message))));

addEventListener("hashchange", () => location.reload()); // a link opened in this tab loads nothing by itself
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) history.replaceState(null, "", "/"); // out of the address bar and of the history
try {
  const known = await server.session();
  if (known.annotator !== null) begin(known);
  else ask(token, token ? "" : "Open the link that “rlhf-env annotate” shows: it holds the key to this page.");
} catch (error) {
  ask(token, error.message);
}
