// Line charts as SVG, drawn anew in place: a line for training with the range of what was averaged, dots for evaluations.

import { el } from "./elements.js";

const SVG = document.querySelector("svg").namespaceURI; // the page has an empty one: nothing here names an address
const WIDTH = 360;
const HEIGHT = 168;
const LEFT = 46;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 22;

export const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

export function written(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return number.toExponential(1).replace("-", "−").replace("+", "");
  return number.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 4 : 3 }).replace("-", "−");
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((it) => it * power).find((it) => it >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return found;
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null) continue; // where the log has no number
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity) return [0, 1];
  if (high - low <= 1e-9 * Math.max(1e-9, Math.abs(low), Math.abs(high))) return [low - Math.max(0.5, Math.abs(low) / 2), high + Math.max(0.5, Math.abs(low) / 2)];
  const room = (high - low) * 0.06;
  return [low - room, high + room];
}

// The places of the numbers, in pieces: null is where there is none.
function pieces(ys) {
  const found = [];
  ys.forEach((y, i) => {
    if (y === null) return;
    if (i && ys[i - 1] !== null && found.length) found.at(-1).push(i);
    else found.push([i]);
  });
  return found;
}

const short = (x) => (x >= 1e6 ? `${+(x / 1e6).toPrecision(3)}M` : x >= 1e4 ? `${+(x / 1e3).toPrecision(3)}k` : String(+x.toPrecision(4)));

// A chart with its heading and, below it, what the number is. `marks`: [[x, words]], where warnings were seen.
export class Chart {
  constructor(panel) {
    this.values = el("p", { class: "values" });
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0", class: "chart" });
    this.readout = el("p", { class: "readout", "aria-live": "polite" });
    const meaning = panel.meaning ? el("p", { class: "meaning" }, panel.meaning) : "";
    this.band = el("p", { class: "meaning" });
    this.node = el("section", { class: "panel plot" }, el("h3", {}, panel.title), this.values, this.drawing, this.readout, meaning, this.band);
    this.at = null;
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.read(null));
    this.drawing.addEventListener("blur", () => this.read(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
  }

  update(panel, axis, marks) {
    this.panel = panel;
    this.axis = axis;
    const lines = panel.lines;
    const now = (line) => (line.missing_since === undefined ? written(line.last) : `no number since update ${line.missing_since.toLocaleString("en")}`);
    const said = lines.map((line) => `${line.name} ${now(line)}`).join(" · ");
    this.values.replaceChildren(...lines.map((line) => el("span", { class: `of-${line.name}` }, el("span", { class: "swatch", "aria-hidden": "true" }), `${line.name} `, el("b", line.missing_since === undefined ? {} : { class: "lost" }, now(line)))));
    this.band.textContent = lines.some((line) => line.low) ? "Each point is the mean of neighbouring updates; the band goes from their lowest to their highest." : "";
    const xs = lines.flatMap((line) => line.x);
    this.x = [Math.min(...xs), Math.max(...xs)];
    if (this.x[0] === this.x[1]) this.x[1] += 1;
    this.y = extent(lines.flatMap((line) => [...line.y, ...(line.low ?? []), ...(line.high ?? [])]));
    this.drawing.setAttribute("aria-label", `${panel.title}: ${said}, at ${axis} ${short(Math.max(...xs))}. Arrow keys read values.`);
    const parts = [];
    for (const at of ticks(...this.y, 4)) {
      const y = this.toY(at);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }), svg("text", { class: "tick", x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, written(at)));
    }
    for (const at of ticks(...this.x, 4)) parts.push(svg("text", { class: "tick", x: this.toX(at), y: HEIGHT - 6, "text-anchor": "middle" }, short(at)));
    for (const [at, words] of marks) {
      if (at < this.x[0] || at > this.x[1]) continue;
      parts.push(svg("line", { class: "alert", x1: this.toX(at), x2: this.toX(at), y1: TOP, y2: HEIGHT - BOTTOM }, svg("title", {}, words)));
    }
    for (const line of lines) parts.push(...this.drawn(line));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.drawing.replaceChildren(...parts, this.cursor);
    this.read(this.at);
  }

  toX(x) {
    return +(LEFT + ((x - this.x[0]) / (this.x[1] - this.x[0])) * (WIDTH - LEFT - RIGHT)).toFixed(2);
  }

  toY(y) {
    return +(HEIGHT - BOTTOM - ((y - this.y[0]) / (this.y[1] - this.y[0])) * (HEIGHT - TOP - BOTTOM)).toFixed(2);
  }

  // A line breaks where the log has no number; a piece of one point is a dot, as evaluations are.
  drawn(line) {
    const along = (places, ys) => places.map((i) => `${this.toX(line.x[i])} ${this.toY(ys[i])}`).join("L");
    const parts = [];
    const dots = line.name === "evaluation" && line.x.length <= 40;
    for (const piece of pieces(line.y)) {
      if (line.low) parts.push(svg("path", { class: `range of-${line.name}`, d: `M${along(piece, line.high)}L${along([...piece].reverse(), line.low)}Z` }));
      parts.push(svg("path", { class: `line of-${line.name}`, d: `M${along(piece, line.y)}` }));
      if (dots || piece.length === 1) parts.push(...piece.map((i) => svg("circle", { class: `dot of-${line.name}`, cx: this.toX(line.x[i]), cy: this.toY(line.y[i]), r: 3 })));
    }
    return parts;
  }

  point(event) {
    const box = this.drawing.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * WIDTH;
    this.read(this.x[0] + ((share - LEFT) / (WIDTH - LEFT - RIGHT)) * (this.x[1] - this.x[0]));
  }

  key(event) {
    const all = [...new Set(this.panel.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const now = this.at === null ? all.length : all.findIndex((x) => x >= this.at);
    const to = { ArrowLeft: now - 1, ArrowRight: this.at === null ? 0 : now + 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.read(all[Math.max(0, Math.min(all.length - 1, to))]);
  }

  read(at) {
    this.at = at;
    if (at === null) {
      this.cursor?.setAttribute("visibility", "hidden");
      this.readout.replaceChildren(el("span", { class: "along" }, this.axis ?? ""));
      return;
    }
    const near = this.panel.lines.map((line) => [line, line.x.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(line.x[best] - at) ? i : best), 0)]);
    const [first, i] = near.reduce((a, b) => (Math.abs(b[0].x[b[1]] - at) < Math.abs(a[0].x[a[1]] - at) ? b : a));
    const x = first.x[i];
    this.cursor.setAttribute("x1", this.toX(x));
    this.cursor.setAttribute("x2", this.toX(x));
    this.cursor.setAttribute("visibility", "visible");
    this.readout.textContent = `${this.axis} ${short(x)}: ${near.map(([line, j]) => `${line.name} ${line.y[j] === null ? "no number" : written(line.y[j])}`).join(", ")}`;
  }
}
