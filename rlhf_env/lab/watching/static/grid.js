// A grid: agents x tasks, each cell's seeds with what they have come to and the way to their runs.

import { written } from "./chart.js";
import { el, shown } from "./elements.js";
import { head, post } from "./watch.js";

const WORDS = { waiting: "waiting", running: "running", stopped: "stopped", finished: "done", failed: "failed" };

// As in the report: two decimals, and no minus sign before zero.
function score(number) {
  if (number === null || number === undefined || Math.abs(number) >= 1000) return written(number);
  return number.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "−");
}

const mean = (numbers) => numbers.reduce((sum, it) => sum + it, 0) / numbers.length;

function seed(it) {
  const share = it.fraction === null || it.fraction === undefined ? "" : ` ${Math.round(100 * it.fraction)} %`;
  const number = it.status === "finished" ? score(it.score) : it.status === "running" || it.status === "stopped" ? `${WORDS[it.status]}${share}` : WORDS[it.status];
  const warned = it.warnings ? el("span", { class: "warned", title: `${it.warnings} warnings` }, ` ⚠ ${it.warnings}`) : "";
  const inside = [el("span", { class: "seed" }, `seed ${it.seed}`), " ", el("b", {}, number), warned];
  const name = `${it.task}/${it.agent}/${it.seed}`;
  const said = `${it.agent} on ${it.task}, seed ${it.seed}: ${number}${it.why ? `, ${it.why}` : ""}`;
  return el("li", { class: it.status, title: it.why || false }, it.begun ? el("a", { href: `#run=${encodeURIComponent(name)}`, "aria-label": said }, ...inside) : el("span", {}, ...inside));
}

function swatch(colour) {
  const made = el("span", { class: "agent", "aria-hidden": "true" });
  made.style.backgroundColor = colour;
  return made;
}

export class Grid {
  constructor(place) {
    this.table = el("table", { class: "cells" });
    this.report = el("p", { class: "fine" });
    this.node = el("div", { class: "grid" }, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Cells" }, this.table), this.report);
    this.before = "";
    place.replaceChildren(this.node);
  }

  async look() {
    const said = await post("grid", {});
    head.title(shown(said.name), said.name);
    head.state(said.at_work ? "Running" : said.done === said.cells.length ? "Ended" : "Not at work");
    head.progress(said.cells.length ? said.done / said.cells.length : null, `${said.done} of ${said.cells.length} runs done${said.trials ? ` · ${said.trials} trials of settings` : ""}`);
    const now = JSON.stringify(said);
    if (now !== this.before) this.draw(said);
    this.before = now;
    return 0;
  }

  draw({ tasks, agents, colours, cells, report }) {
    const focused = document.activeElement?.getAttribute?.("href");
    const measures = [...new Set(cells.map((it) => it.measure).filter(Boolean))];
    const row = (agent) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, swatch(colours[agent]), ...shown(agent)),
        ...tasks.map((task) => {
          const own = cells.filter((it) => it.agent === agent && it.task === task);
          const scores = own.map((it) => it.score).filter((it) => it !== null && it !== undefined);
          return el("td", {}, scores.length > 1 ? el("p", { class: "mean" }, "mean ", el("b", {}, score(mean(scores)))) : "", el("ul", { class: "seeds" }, ...own.map(seed)));
        }),
      );
    this.table.replaceChildren(
      el("caption", {}, `Each seed’s ${measures.join(" or ") || "score"} when it is done, and how far it is before. Choose one to see its run.`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Agent"), ...tasks.map((task) => el("th", { scope: "col" }, ...shown(task))))),
      el("tbody", {}, ...agents.map(row)),
    );
    this.report.replaceChildren(...(report ? ["The report, with intervals and tests: ", el("code", {}, ...shown(report))] : []));
    if (focused) [...this.table.querySelectorAll("a")].find((it) => it.getAttribute("href") === focused)?.focus();
  }
}
