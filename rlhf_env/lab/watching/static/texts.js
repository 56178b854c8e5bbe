// The browser of texts: sorted, searched, one prompt over time, tokens coloured by their numbers.

import { written } from "./chart.js";
import { el, shown } from "./elements.js";
import { post } from "./watch.js";

const SORTS = { update: "update", reward: "reward", length: "length", kl: "KL to the reference", change: "change of reward", rewritten: "change of words", gold: "gold", proxy: "proxy" };
const NUMBERS = { reward: "token reward", log_ratio: "log-ratio to the reference", advantage: "advantage" };
const ENDS = { stop: "the end token", length: "the limit of length", stop_string: "a stop string", task: "the task" };
const named = (table, name) => table[name] ?? (name.startsWith("part/") ? `part ${name.slice(5)}` : name);
const option = (value, text, now) => el("option", { value, selected: String(value) === String(now) }, text);

let ids = 0;
function labelled(words, control) {
  control.id = `choice-${(ids += 1)}`;
  return el("div", { class: "choice" }, el("label", { for: control.id }, words), control);
}

export class Texts {
  constructor(cell) {
    this.cell = cell;
    this.query = { sort: "update", descending: true, search: "", source: "", update: null, prompt: null, begin: 0 };
    this.colour = "";
    this.known = null;
    this.asked = 0;
    const choice = (change) => el("select", { onchange: (event) => change(event.target.value) });
    this.sort = choice((value) => this.ask({ sort: value, descending: value !== "update" || this.query.prompt === null }));
    this.order = el("button", { type: "button", class: "small", onclick: () => this.ask({ descending: !this.query.descending }) });
    this.update = choice((value) => this.ask({ update: value === "" ? null : Number(value) }));
    this.source = choice((value) => this.ask({ source: value }));
    this.colours = choice((value) => {
      this.colour = value;
      this.draw();
    });
    this.search = el("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    this.search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.ask({ search: this.search.value }), 250);
    });
    this.only = el("p", { class: "only", hidden: true });
    this.count = el("p", { class: "fine", role: "status", "aria-live": "polite" });
    this.scale = el("p", { class: "scale", hidden: true });
    this.list = el("div", { class: "texts" });
    this.earlier = el("button", { type: "button", class: "small", onclick: () => this.ask({ begin: Math.max(0, this.query.begin - this.step) }, true) }, "Previous");
    this.later = el("button", { type: "button", class: "small", onclick: () => this.ask({ begin: this.query.begin + this.step }, true) }, "Next");
    this.controls = el(
      "div",
      { class: "controls", role: "search", "aria-label": "Texts" },
      labelled("Search", this.search),
      labelled("Sort by", this.sort),
      el("div", { class: "choice" }, el("span", { class: "label" }, "Order"), this.order),
      labelled("Colour tokens by", this.colours),
      labelled("Update", this.update),
      labelled("Written for", this.source),
    );
    this.note = el("p", { class: "panel note", hidden: true });
    this.heading = el("h2", { tabindex: "-1" }, "Texts");
    this.node = el("section", { class: "browser" }, this.heading, this.note, this.controls, this.only, this.scale, this.count, this.list, el("p", { class: "pages" }, this.earlier, this.later));
    this.step = 12;
    this.found = { total: 0, begin: 0, texts: [] };
  }

  // What there is to choose from has been told; new texts are fetched where the newest are looked at.
  async heard(about, first) {
    const now = JSON.stringify(about);
    if (now === this.known) return;
    const grown = this.known !== null;
    this.known = now;
    const none = about.count === 0;
    this.controls.hidden = none;
    this.note.hidden = about.numbers.length > 0;
    this.note.textContent = none
      ? "This run has kept no texts yet. They come with its first evaluation and with every tenth rollout; with of_evaluation = 0 and of_rollout = 0 in [texts], none are kept."
      : "These are the samples of the last evaluation: the run has kept no numbers of tokens. Runs of this version do, unless [texts] says otherwise.";
    if (!this.colour && !grown && about.numbers.length) this.colour = about.numbers.includes("log_ratio") ? "log_ratio" : about.numbers[0];
    this.sort.replaceChildren(...about.sorts.map((it) => option(it, named(SORTS, it), this.query.sort)));
    if (!about.sorts.includes(this.query.sort) && about.sorts.length) {
      this.query.sort = about.sorts[0];
      this.query.descending = true;
    }
    this.colours.replaceChildren(option("", "nothing", this.colour), ...about.numbers.map((it) => option(it, named(NUMBERS, it), this.colour)));
    this.update.replaceChildren(option("", "all", this.query.update ?? ""), ...[...about.updates].reverse().map((it) => option(it, it.toLocaleString("en"), this.query.update ?? "")));
    this.source.replaceChildren(option("", "both", this.query.source), ...about.sources.map((it) => option(it, { evaluation: "evaluation", rollout: "training" }[it] ?? it, this.query.source)));
    this.update.parentNode.hidden = about.updates.length < 2;
    this.source.parentNode.hidden = about.sources.length < 2;
    this.colours.parentNode.hidden = about.numbers.length === 0;
    if (!grown || (this.query.begin === 0 && !this.list.contains(document.activeElement) && scrollY < 400)) await this.ask({});
    else if (!none) this.count.textContent = `${this.said()} New ones have come: sort or search to see them.`;
  }

  async ask(changes, turning = false) {
    this.query = { ...this.query, begin: 0, ...changes };
    const mine = (this.asked += 1);
    const found = await post("texts", { cell: this.cell, ...this.query });
    if (mine !== this.asked) return; // a later question is on its way
    this.found = found;
    this.order.textContent = this.query.descending ? "largest first" : "smallest first";
    this.sort.value = this.query.sort;
    this.only.hidden = this.query.prompt === null;
    this.only.replaceChildren("One prompt over time, the earliest first. ", el("button", { type: "button", class: "link", onclick: () => this.all() }, "All prompts"));
    this.draw();
    if (turning) this.heading.focus();
  }

  show() {
    this.heading.scrollIntoView();
    this.heading.focus();
  }

  all() {
    return this.ask({ prompt: null, sort: "update", descending: true, source: "" }, true);
  }

  over(text) {
    return this.ask({ prompt: text.prompt_id, sort: "update", descending: false, update: null, source: text.source, search: "" }, true);
  }

  said() {
    const { total, begin, texts } = this.found;
    if (!total) return "No text fits.";
    return total > texts.length ? `${(begin + 1).toLocaleString("en")} to ${(begin + texts.length).toLocaleString("en")} of ${total.toLocaleString("en")} texts.` : `${total} ${total === 1 ? "text" : "texts"}.`;
  }

  draw() {
    const { total, begin, texts } = this.found;
    this.count.textContent = this.said();
    this.earlier.hidden = begin === 0;
    this.later.hidden = begin + texts.length >= total;
    const numbers = texts.flatMap((it) => it.numbers[this.colour] ?? []).filter((it) => it !== null).map(Math.abs).sort((a, b) => a - b);
    const most = numbers.length ? numbers[Math.floor(0.98 * (numbers.length - 1))] || numbers.at(-1) || 0 : 0; // one outlier would leave the rest pale
    this.scale.hidden = !this.colour || !texts.length;
    this.scale.replaceChildren(
      el("span", {}, `${named(NUMBERS, this.colour)}: `),
      ...(numbers.length
        ? [el("span", { class: "end" }, written(-most)), swatches(), el("span", { class: "end" }, written(most)), " below 0 also dotted; arrow keys in a text read each token"]
        : ["not known of these texts", this.colour === "advantage" ? ": advantages are those of training, and not every agent has them" : ""]),
    );
    this.list.replaceChildren(...texts.map((it) => this.card(it, most)));
  }

  card(text, most) {
    const facts = [
      text.update === undefined ? null : ["update", text.update.toLocaleString("en")],
      text.source && this.query.source === "" ? ["for", text.source === "rollout" ? "training" : text.source] : null,
      ...["reward", "gold", "proxy"].filter((it) => text[it] !== undefined && text[it] !== null).map((it) => [it, written(text[it])]),
      ...Object.entries(text.parts).filter(([, value]) => value === null || value !== -text.kl).map(([name, value]) => [name, written(value)]),
      text.kl === undefined ? null : ["KL", written(text.kl)],
      text.length === undefined ? null : ["tokens", text.length],
      text.change === undefined ? null : ["change of reward", written(text.change)],
      text.rewritten === undefined ? null : ["change of words", `${Math.round(100 * text.rewritten)} %`],
      text.finish_reason ? ["ended by", ENDS[text.finish_reason] ?? text.finish_reason] : null,
    ].filter(Boolean);
    const over = text.prompt_id === null || this.query.prompt !== null ? "" : el("button", { type: "button", class: "link", onclick: () => this.over(text) }, "This prompt over time");
    return el(
      "article",
      { class: "panel" },
      el("p", { class: "asked", dir: "auto" }, ...(text.prompt ? shown(text.prompt) : [el("span", { class: "unseen" }, "empty prompt")])),
      tokens(text, this.colour, most),
      el("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [el("div", {}, el("dt", {}, ...shown(String(name))), el("dd", {}, ...shown(String(value))))])),
      over,
    );
  }
}

function swatches() {
  const steps = [-1, -0.66, -0.33, 0, 0.33, 0.66, 1].map((share) => {
    const one = el("span", { class: "step" });
    paint(one, share);
    return one;
  });
  return el("span", { class: "steps", "aria-hidden": "true" }, ...steps);
}

function paint(node, share) {
  const size = Math.round(62 * Math.min(1, Math.abs(share)));
  if (size < 2) return;
  node.style.backgroundColor = `color-mix(in srgb, var(${share > 0 ? "--plus" : "--minus"}) ${size}%, transparent)`;
  if (share < 0) node.classList.add("minus");
}

// A text, its tokens coloured. It is one stop of the Tab key; inside, arrows go from token to token and read its number.
function tokens(text, colour, most) {
  const numbers = text.numbers[colour];
  if (!text.tokens.length) return el("div", { class: "text", dir: "auto" }, ...(text.response ? shown(text.response) : [el("span", { class: "unseen" }, "empty")]));
  const given = new Set(text.given);
  const made = text.tokens.map((token, i) => {
    const one = el("span", { class: given.has(i) ? "token given" : "token" }, ...(token === "" ? [el("span", { class: "bare", "aria-hidden": "true" }, i === text.tokens.length - 1 ? "∎" : "·")] : shown(token)));
    const number = numbers?.[i];
    if (number !== null && number !== undefined && most > 0) paint(one, number / most);
    return one;
  });
  const readout = el("p", { class: "readout", "aria-live": "polite" });
  let at = -1;
  const read = (i) => {
    made[at]?.classList.remove("at");
    at = i;
    made[at]?.classList.add("at");
    const all = Object.entries(text.numbers).map(([name, values]) => `${named(NUMBERS, name)} ${written(values[at])}`);
    readout.textContent = at < 0 ? "" : `token ${at + 1}, “${text.tokens[at] || "shown as nothing"}”: ${given.has(at) ? "not the agent’s" : all.join(", ")}`;
  };
  const box = el("div", { class: "text tokens", dir: "auto", tabindex: "0", role: "group", "aria-label": "Response; arrow keys read each token’s numbers" }, ...made);
  box.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: made.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(Math.max(0, Math.min(made.length - 1, to)));
  });
  box.addEventListener("pointerover", (event) => {
    const i = made.indexOf(event.target.closest(".token"));
    if (i >= 0) read(i);
  });
  box.addEventListener("pointerleave", () => read(-1));
  box.addEventListener("blur", () => read(-1));
  const cut = text.tokens.length >= 2048 ? el("p", { class: "fine" }, "The first 2,048 tokens of it.") : "";
  return el("div", {}, box, readout, cut);
}
