// A run: its head, warnings, curves, and the texts that it kept.

import { Chart, written } from "./chart.js";
import { el, shown } from "./elements.js";
import { Texts } from "./texts.js";
import { head, post } from "./watch.js";

const SECTIONS = { main: "Curves", parts: "Parts of the reward", agent: "What the agent logs", rest: "Everything else that is logged" };
const OPEN = ["main", "parts"];
const STATES = { running: "Running", ended: "Ended", stopped: "Stopped before its end", waiting: "Nothing logged yet" };

const whole = (number) => (number ?? 0).toLocaleString("en");
export const spoken = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);

export class Run {
  constructor(place, cell) {
    this.cell = cell;
    this.have = null;
    this.by = "update";
    this.charts = new Map();
    this.warnings = el("section", { "aria-label": "Warnings" });
    const choose = el("select", { id: "axis", onchange: () => this.turn(choose.value) }, el("option", { value: "update" }, "updates"), el("option", { value: "tokens" }, "tokens written in training"));
    this.sections = Object.entries(SECTIONS).map(([name, title]) => this.section(name, title));
    this.texts = new Texts(cell);
    const down = el("button", { type: "button", class: "link", onclick: () => this.texts.show() }, "To the texts");
    this.axis = el("p", { class: "axis" }, el("span", {}, el("label", { for: "axis" }, "Along "), choose), down);
    const back = cell === null ? "" : el("p", { class: "back" }, el("a", { href: "#" }, "← All cells"));
    this.node = el("div", { class: "run" }, back, this.warnings, this.axis, ...this.sections.map((it) => it.node).slice(0, 2), this.texts.node, ...this.sections.map((it) => it.node).slice(2));
    place.replaceChildren(this.node);
    head.title("Watch");
    head.state("");
    head.progress(null, "");
  }

  section(name, title) {
    const plots = el("div", { class: "plots" });
    const node = el("details", { class: "section", open: OPEN.includes(name), hidden: true }, el("summary", {}, el("h2", {}, title)), plots);
    node.addEventListener("toggle", () => {
      this.have = null; // what was folded away was not sent
    });
    return { name, node, plots };
  }

  turn(by) {
    this.by = by;
    this.have = null;
    this.look().catch(() => {});
  }

  async look() {
    const open = this.sections.filter((it) => it.node.open).map((it) => it.name);
    const said = await post("run", { cell: this.cell, have: this.have, sections: open, by: this.by });
    if (said.same) {
      this.say(this.about, said.silent);
      return said.left;
    }
    const before = this.have;
    this.have = said.version;
    this.about = said.about;
    this.say(said.about, said.silent);
    this.warn(said.about.warnings);
    this.draw(said.panels, open, said.about.warnings);
    for (const it of this.sections) if (!open.includes(it.name)) it.node.hidden = said.about.status === "waiting";
    await this.texts.heard(said.texts, before === null);
    return said.left;
  }

  say(about, silent) {
    const title = [about.agent, about.task].filter(Boolean).join(" on ");
    head.title([...shown(about.name), " ", el("span", { class: "fine" }, ...shown([title !== about.name && title, about.model && `model ${about.model}`, `seed ${about.seed}`].filter(Boolean).join(" · ")))], about.name);
    const quiet = about.status === "running" && silent > 30 ? `, last heard of ${spoken(silent)} ago` : "";
    head.state(`${STATES[about.status]}${about.reason ? `: ${about.reason}` : ""}${quiet}`);
    const counts = [`Update ${whole(about.update)}`];
    if (about.episodes) counts.push(`${whole(about.episodes)} texts`);
    if (about.tokens) counts.push(`${whole(about.tokens)} tokens`);
    if (about.seconds) counts.push(spoken(about.seconds));
    if (about.fraction !== null) counts.push(`${Math.round(100 * about.fraction)} % of the budget`);
    head.progress(about.fraction, counts.join(" · "));
  }

  warn(warnings) {
    this.warnings.replaceChildren(
      ...(warnings.length ? [el("h2", {}, "Warnings")] : []),
      ...warnings.map((it) =>
        el("div", { class: "panel warning" }, el("h3", {}, ...shown(it.name), it.update === null ? "" : `, update ${it.update}`), el("p", {}, ...shown(it.message)), el("p", { class: "fine" }, ...shown(it.remedy))),
      ),
    );
  }

  draw(panels, open, warnings) {
    const marks = this.by === "update" ? warnings.filter((it) => it.update !== null).map((it) => [it.update, it.name]) : [];
    const seen = new Set();
    for (const { name, node, plots } of this.sections.filter((it) => open.includes(it.name))) {
      const own = panels.filter((panel) => panel.section === name);
      node.hidden = own.length === 0;
      own.forEach((panel, place) => {
        const key = `${name} ${panel.title} ${panel.lines[0].key}`;
        seen.add(key);
        if (!this.charts.has(key)) this.charts.set(key, new Chart(panel));
        const chart = this.charts.get(key);
        chart.update(panel, this.by === "update" ? "update" : "token", marks);
        if (plots.children[place] !== chart.node) plots.insertBefore(chart.node, plots.children[place] ?? null);
      });
      for (const left of [...plots.children].slice(own.length)) left.remove();
    }
    for (const key of this.charts.keys()) if (!seen.has(key)) this.charts.delete(key);
  }
}

export { written };
