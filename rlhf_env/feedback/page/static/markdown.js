// Markdown as elements: what models and guidelines write most, and nothing that loads or runs anything. Strings become
// text nodes; a link is its words with the address beside them, a picture the words that stand for it.
//
// Blocks: paragraphs, headings, lists, quotes, tables, rules, code between fences. Inside: `code`, **strong**, *stressed*,
// ~~struck out~~, [words](address). A line break stays one. Time is linear in the length of a text.

import { el, shown } from "./elements.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const CELLS = /^ {0,3}\|?(?: *:?-+:? *\|)+ *:?-* *:? *$/;
const DEEPEST = 8;

// Whether the text looks different as Markdown.
export const isMarkdown = (text) =>
  text.split("\n").some((line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line)) || /`[^`\n]+`|\*\S|__\S|~~\S|\]\(/.test(text);

export const markdown = (text) => blocks(text.split("\n"), 0);

function blocks(lines, depth) {
  const made = [];
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) made.push(el("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    let found;
    if (!line.trim()) {
      flush();
      i++;
    } else if ((found = FENCE.exec(line))) {
      flush();
      const mark = found[1];
      const start = ++i;
      while (i < lines.length && !(lines[i].trim().startsWith(mark) && /^[`~]+$/.test(lines[i].trim()))) i++;
      const code = el("code", {}, ...shown(lines.slice(start, i).join("\n")));
      made.push(el("pre", { tabindex: "0", "aria-label": found[2] ? `Code, ${found[2]}` : "Code", role: "group" }, code));
      i++;
    } else if ((found = HEADING.exec(line))) {
      flush();
      made.push(el("p", { class: `heading level${Math.min(found[1].length, 3)}` }, ...inline(found[2])));
      i++;
    } else if (RULE.test(line)) {
      flush();
      made.push(el("hr"));
      i++;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      flush();
      const inside = [];
      while (i < lines.length && QUOTE.test(lines[i])) inside.push(lines[i++].replace(QUOTE, ""));
      made.push(el("blockquote", {}, ...blocks(inside, depth + 1)));
    } else if (line.includes("|") && i + 1 < lines.length && CELLS.test(lines[i + 1])) {
      flush();
      const rows = [line];
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) rows.push(lines[i]);
      made.push(table(rows));
    } else if ((found = ITEM.exec(line)) && depth < DEEPEST && (!paragraph.length || !/^\d/.test(found[2]) || parseInt(found[2]) === 1)) {
      flush();
      const [list, next] = listAt(lines, i, depth);
      made.push(list);
      i = next;
    } else {
      paragraph.push(line);
      i++;
    }
  }
  flush();
  return made;
}

// The list that begins at line `i`, and the line after it.
function listAt(lines, i, depth) {
  const first = ITEM.exec(lines[i]);
  const numbered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  while (i < lines.length) {
    const found = ITEM.exec(lines[i]);
    if (!found || found[1].length !== indent || /\d/.test(found[2]) !== numbered || RULE.test(lines[i])) break;
    const width = found[0].length;
    const inside = [lines[i++].slice(width)];
    while (i < lines.length) {
      const blank = !lines[i].trim();
      const deeper = /^ */.exec(lines[i])[0].length > indent;
      if (blank ? !(i + 1 < lines.length && /^ */.exec(lines[i + 1])[0].length > indent && lines[i + 1].trim()) : !deeper) break;
      inside.push(blank ? "" : lines[i].slice(Math.min(width, /^ */.exec(lines[i])[0].length)));
      i++;
    }
    if (i + 1 < lines.length && !lines[i].trim() && ITEM.exec(lines[i + 1])?.[1].length === indent) i++;
    const parts = blocks(inside, depth + 1);
    const only = parts.length && parts[0].tagName === "P" && !parts[0].className ? [...parts[0].childNodes, ...parts.slice(1)] : parts;
    items.push(el("li", {}, ...only));
  }
  const start = numbered ? parseInt(first[2]) : 1;
  return [el(numbered ? "ol" : "ul", start === 1 ? {} : { start: String(start) }, ...items), i];
}

function table(rows) {
  const cells = (row) =>
    row.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => inline(cell.trim()));
  const [head, ...body] = rows.map(cells);
  return el(
    "div",
    { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    el("table", {}, el("thead", {}, el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, ...cell)))), el("tbody", {}, ...body.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, ...cell)))))),
  );
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const SPECIAL = /[`*_~[!\\]/g;

function inline(text, depth = 0) {
  const made = [];
  const missing = new Map(); // marks of which no more come: nothing is looked for twice
  let plain = "";
  const flush = () => {
    if (plain) made.push(...shown(plain));
    plain = "";
  };
  const find = (mark, from) => {
    if (from >= (missing.get(mark) ?? Infinity)) return -1;
    const at = text.indexOf(mark, from);
    if (at < 0) missing.set(mark, from);
    return at;
  };
  for (let i = 0; i < text.length; ) {
    SPECIAL.lastIndex = i;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(i, next);
    i = next;
    if (i >= text.length) break;
    if (text[i] === "\\" && /[!-\/:-@[-`{-~]/.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
      continue;
    }
    if (text[i] === "`") {
      const mark = /^`+/.exec(text.slice(i, i + 50))[0];
      const end = find(mark, i + mark.length);
      if (end > 0) {
        flush();
        made.push(el("code", {}, ...shown(text.slice(i + mark.length, end))));
        i = end + mark.length;
      } else {
        plain += mark;
        i += mark.length;
      }
      continue;
    }
    const picture = text[i] === "!" && text[i + 1] === "[";
    if (text[i] === "[" || picture) {
      const link = /^!?\[([^\][\n]{0,500})\]\(([^()\s]{1,1000})(?: "[^"\n]{0,200}")?\)/.exec(text.slice(i, i + 1800));
      if (link) {
        flush();
        made.push(el("span", { class: "link" }, ...shown(link[1] || (picture ? "picture" : "")), el("span", { class: "address" }, ` (${picture ? "picture: " : ""}`, ...shown(link[2]), ")")));
        i += link[0].length;
        continue;
      }
    }
    const mark = depth < DEEPEST && MARKS.find(([it]) => text.startsWith(it, i));
    const end = mark ? closing(text, mark[0], i, find) : -1;
    if (end > 0) {
      flush();
      made.push(el(mark[1], {}, ...inline(text.slice(i + mark[0].length, end), depth + 1)));
      i = end + mark[0].length;
    } else {
      const run = mark ? mark[0] : text[i];
      plain += run;
      i += run.length;
    }
  }
  flush();
  return made;
}

// Where what begins at `i` ends; -1 where a mark is only a sign: "2 * 3", "snake_case".
function closing(text, mark, i, find) {
  const from = i + mark.length;
  const word = /[\p{L}\p{N}]/u;
  if (/\s/.test(text[from] ?? " ") || (mark[0] === "_" && word.test(text[i - 1] ?? ""))) return -1;
  for (let at = find(mark, from + 1), tries = 0; at > 0 && tries < 20; at = find(mark, at + mark.length), tries++) {
    const inside = !/\s/.test(text[at - 1]) && text[at - 1] !== "\\";
    const whole = mark.length > 1 || text[at + 1] !== mark;
    if (inside && whole && !(mark[0] === "_" && word.test(text[at + mark.length] ?? ""))) return at;
    if (!whole) at++;
  }
  return -1;
}
