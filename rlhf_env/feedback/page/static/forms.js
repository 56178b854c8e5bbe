// The form of an item, drawn from the inputs that the server sends: the page knows inputs, not kinds of judgement.
// `controlsOf(item, submit)` gives
//   question   what is asked, as text
//   card(i)    nodes that go under response i
//   above      nodes that go above the bar at the bottom
//   layout     the class of that bar
//   actions    nodes for it
//   keys       [[key, meaning]], as shown to people
//   press(key) true when the key meant something
// `submit({ answer })` judges; an option that says by how much adds its `margin`, one that says why there is no answer is
// `{ abstain }`. `draft` is what was filled in before, or said in an earlier vote; `keep(draft)` is told of each change.

import { el } from "./elements.js";

export const button = (label, key, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, "aria-keyshortcuts": key, ...attributes }, label, " ", key ? el("kbd", {}, key) : "");
const digit = (i) => (i < 9 ? String(i + 1) : null); // the tenth response has a button, and no key

const ORDINALS = ["1st", "2nd", "3rd"];
const ordinal = (place) => ORDINALS[place - 1] ?? `${place}th`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// One choice, each option a button that judges at once: under its response, or in the bar.
// On a phone those under a response are in the bar, too (page.css shows one of the two): both responses are judged
// without scrolling to them.
function choice({ inputs: [{ options, steps }] }, item, submit, { said }) {
  const say = (it) => submit(it.margin === null ? { answer: it.value } : { answer: it.value, margin: it.margin });
  const alike = said === null || said.abstain !== null ? [] : options.filter((it) => it.value === said.answer);
  const exact = alike.filter((it) => (it.margin ?? null) === (said.margin ?? null));
  const isSaid = (it) => (exact.length || alike.length > 1 ? exact : alike).includes(it); // strengths may have been asked for then, and not now
  const draw = (it, attributes, label = it.label) => button(label, it.key, () => say(it), { ...attributes, ...(isSaid(it) ? { "aria-pressed": "true" } : {}) });
  const ends = [options[0], options.at(-1)];
  const under = (i) => options.filter((it) => it.under === i);
  const strengths = options.some((it) => it.margin !== null);
  const about = (it) => (strengths && it.under !== null ? `Response ${it.under + 1}: ${it.label.toLowerCase()}` : it.label);
  const sides = item.responses.map((_, i) => i).filter((i) => under(i).length);
  return {
    layout: steps ? "steps" : "",
    twice: sides.length > 0,
    card: (i) => under(i).map((it) => draw(it, { class: "main" })),
    actions: [
      ...sides.map((i) =>
        el("div", { class: strengths ? "side strengths" : "side", role: "group", "aria-label": `Response ${i + 1}` }, ...(strengths ? [el("span", { class: "fine" }, `Response ${i + 1}`)] : []), ...under(i).map((it) => draw(it, { class: "main" }))),
      ),
      ...options.filter((it) => it.under === null).map((it) => draw(it, steps ? { class: "score" } : {})),
    ],
    keys: steps ? [[ends.map((it) => it.key).join(" – "), capital(ends.map((it) => it.label).join(" to "))]] : options.map((it) => [it.key, about(it)]),
    press(key) {
      const found = options.find((it) => it.key && it.key === key);
      if (found) say(found);
      return Boolean(found);
    },
  };
}

// The responses put in order, one after the other.
function order(form, item, submit, { said, draft, keep }) {
  const count = item.responses.length;
  const ranks = said?.answer ?? [];
  const before = [...new Set(ranks)].sort((a, b) => a - b).map((rank) => ranks.flatMap((it, i) => (it === rank ? [i] : [])));
  let groups = draft ?? before; // [[best], [next, its equal], ...]
  let tieNext = false;
  const places = item.responses.map(() => el("strong", { class: "place" }));
  const buttons = item.responses.map((_, i) => button("Next best", digit(i), () => toggle(i), { class: "main" }));
  const tie = button("Next one ties", "=", () => tied(), { "aria-pressed": "false" });
  const back = button("Take one back", "Backspace", () => unplace());
  const done = button("Submit order", "Enter", () => finish(), { class: "main", disabled: true });
  const summary = el("p", { class: "order", role: "status" });

  const placeOf = (i) => groups.findIndex((group) => group.includes(i)) + 1;
  const placed = () => groups.flat().length;

  function toggle(i) {
    if (placeOf(i)) groups = groups.map((group) => group.filter((other) => other !== i)).filter((group) => group.length);
    else if (tieNext && groups.length) groups.at(-1).push(i);
    else groups.push([i]);
    tieNext = false;
    update();
  }
  function tied() {
    tieNext = !tieNext && groups.length > 0 && placed() < count;
    update();
  }
  function unplace() {
    groups.at(-1)?.pop();
    groups = groups.filter((group) => group.length);
    tieNext = false;
    update();
  }
  function finish() {
    if (placed() === count) submit({ answer: item.responses.map((_, i) => placeOf(i)) });
  }
  function update() {
    keep(groups);
    buttons.forEach((one, i) => {
      const place = placeOf(i);
      places[i].textContent = place ? ordinal(place) : "";
      one.firstChild.textContent = place ? "Take back" : tieNext ? `Also ${ordinal(groups.length)}` : "Next best";
      one.classList.toggle("main", !place);
    });
    tie.setAttribute("aria-pressed", String(tieNext));
    tie.disabled = !groups.length || placed() === count;
    back.disabled = !groups.length;
    done.disabled = placed() < count;
    const said = groups.map((group, i) => `${ordinal(i + 1)}: ${group.map((r) => `response ${r + 1}`).join(" = ")}`);
    summary.textContent = said.join(",  ") || "Choose the best one, then the next best, and so on.";
  }
  update();
  return {
    layout: "",
    above: [],
    card: (i) => [buttons[i], places[i]],
    actions: [summary, tie, back, done],
    keys: [
      [`1 – ${Math.min(count, 9)}`, "Put this response next, or take it back"],
      ["=", "The next one ties with the last"],
      ["Backspace", "Take the last one back"],
      ["Enter", "Submit the order"],
    ],
    press(key) {
      if (/^[1-9]$/.test(key) && Number(key) <= count) toggle(Number(key) - 1);
      else if (key === "=") tied();
      else if (key === "Backspace") unplace();
      else if (key === "Enter") finish();
      else return false;
      return true;
    },
  };
}

// Several inputs, or words: a row for each, and a button that submits them together. Every choice has to be made.
function sheet({ inputs, submit: label }, item, submit, { said, draft, keep }) {
  const alone = inputs.length === 1 && inputs[0].name === "";
  const told = said === null || said.answer === null ? null : alone ? [said.answer] : inputs.map((input) => said.answer[input.name]);
  const values = (draft ?? told ?? inputs.map(() => null)).map((value, row) => value ?? (inputs[row].type === "text" ? "" : null));
  const done = button(label, "Enter", () => finish(), { class: "main", disabled: values.includes(null) });
  const rows = inputs.map((input, row) => {
    const guidelines = input.guidelines ? el("p", { class: "guidelines" }, input.guidelines) : "";
    return el("fieldset", {}, el("legend", {}, input.label), guidelines, input.type === "text" ? words(input, row) : scale(input, row));
  });

  function words(input, row) {
    const area = el("textarea", { rows: "3", "aria-label": input.label });
    area.value = values[row];
    area.oninput = () => {
      values[row] = area.value;
      keep(values);
    };
    return area;
  }
  function scale({ options, steps }, row) {
    return el("div", { class: steps ? "scale" : "scale words" }, ...options.map((option, i) => radio(row, i, option)));
  }
  function radio(row, i, { label: text, value }) {
    const input = el("input", { type: "radio", name: `criterion ${row}`, onchange: () => set(row, i) });
    input.checked = values[row] === value;
    return el("label", {}, input, el("span", {}, el("b", {}, String(i + 1)), " ", text));
  }
  function set(row, i) {
    values[row] = inputs[row].options[i].value;
    done.disabled = values.includes(null);
    keep(values);
  }
  function finish() {
    if (values.includes(null)) focusRow(values.indexOf(null));
    else if (alone) submit({ answer: values[0] });
    // an own field whatever its name: "__proto__" is a name like any other
    else submit({ answer: Object.fromEntries(inputs.map((input, row) => [input.name, values[row]])) });
  }
  function choose(number) {
    const focused = rows.findIndex((row) => row.contains(document.activeElement));
    const row = focused >= 0 ? focused : values.indexOf(null);
    const radios = rows[row]?.querySelectorAll("input") ?? [];
    if (number > radios.length) return;
    radios[number - 1].checked = true;
    set(row, number - 1);
    if (row + 1 < rows.length) focusRow(row + 1);
    else done.focus();
  }
  function focusRow(row) {
    (rows[row].querySelector("input:checked") ?? rows[row].querySelector("input, textarea")).focus();
  }
  const most = Math.max(0, ...inputs.map((input) => input.options?.length ?? 0));
  return {
    layout: "",
    card: () => [],
    above: [el("div", { class: "scores" }, ...rows)],
    actions: [done],
    keys: [...(most ? [[`1 – ${Math.min(most, 9)}`, "Answer the next question"]] : []), ["Tab, arrows", "Go back and change an answer"], ["Enter", label]],
    press(key) {
      if (/^[1-9]$/.test(key)) choose(Number(key));
      else if (key === "Enter") finish();
      else return false;
      return true;
    },
  };
}

// `before` is { said, draft, keep }: an earlier vote on this item or null, what was filled in or null, who is told of it.
export function controlsOf(item, submit, before) {
  const { inputs, instead, shortcuts, question } = item.form;
  const alone = inputs.length === 1 && inputs[0].name === "";
  const draw = (alone && { choice, order }[inputs[0].type]) || sheet;
  const controls = draw(item.form, item, submit, before);
  const abstain = (it) => submit({ answer: null, abstain: it.value });
  const isSaid = (it) => before.said?.abstain === it.value;
  return {
    above: [],
    ...controls,
    question,
    actions: [...controls.actions, ...instead.map((it) => button(it.label, it.key, () => abstain(it), { class: "instead", ...(isSaid(it) ? { "aria-pressed": "true" } : {}) }))],
    keys: [...(shortcuts.length ? shortcuts : controls.keys), ...instead.map((it) => [it.key, it.label])],
    press(key) {
      const found = instead.find((it) => it.key === key);
      if (found) abstain(found);
      return Boolean(found) || controls.press(key);
    },
  };
}
