// The form of an item, drawn from the inputs that the server sends: the page knows inputs, not kinds of judgement.
// `controlsOf(item, submit)` gives
//   question   what is asked, as text
//   card(i)    nodes that go under response i
//   layout     the class of the bar at the bottom
//   actions    nodes for that bar
//   keys       [[key, meaning]], as shown to people
//   press(key) true when the key meant something

import { el } from "./elements.js";

export const button = (label, key, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, "aria-keyshortcuts": key, ...attributes }, label, " ", key ? el("kbd", {}, key) : "");
const digit = (i) => (i < 9 ? String(i + 1) : null); // the tenth response has a button, and no key

const ORDINALS = ["1st", "2nd", "3rd"];
const ordinal = (place) => ORDINALS[place - 1] ?? `${place}th`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// One choice, each option a button that judges at once: under its response, or in the bar.
function choice({ inputs: [{ options, steps }] }, item, submit) {
  const press = (option) => () => submit(option.value);
  const ends = [options[0], options.at(-1)];
  return {
    layout: steps ? "steps" : "",
    card: (i) => options.filter((it) => it.under === i).map((it) => button(it.label, it.key, press(it), { class: "main" })),
    actions: options.filter((it) => it.under === null).map((it) => button(it.label, it.key, press(it), steps ? { class: "score" } : {})),
    keys: steps ? [[ends.map((it) => it.key).join(" – "), capital(ends.map((it) => it.label).join(" to "))]] : options.map((it) => [it.key, it.label]),
    press(key) {
      const found = options.find((it) => it.key && it.key === key);
      if (found) submit(found.value);
      return Boolean(found);
    },
  };
}

// The responses put in order, one after the other.
function order(form, item, submit) {
  const count = item.responses.length;
  let groups = []; // [[best], [next, its equal], ...]
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
    if (placed() === count) submit(item.responses.map((_, i) => placeOf(i)));
  }
  function update() {
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
function sheet({ inputs, submit: label }, item, submit) {
  const values = inputs.map((input) => (input.type === "text" ? "" : null));
  const done = button(label, "Enter", () => finish(), { class: "main", disabled: values.includes(null) });
  const rows = inputs.map((input, row) => {
    const guidelines = input.guidelines ? el("p", { class: "guidelines" }, input.guidelines) : "";
    return el("fieldset", {}, el("legend", {}, input.label), guidelines, input.type === "text" ? words(input, row) : scale(input, row));
  });

  function words(input, row) {
    const area = el("textarea", { rows: "3", "aria-label": input.label });
    area.oninput = () => (values[row] = area.value);
    return area;
  }
  function scale({ options, steps }, row) {
    return el("div", { class: steps ? "scale" : "scale words" }, ...options.map((option, i) => radio(row, i, option.label)));
  }
  function radio(row, i, text) {
    const input = el("input", { type: "radio", name: `criterion ${row}`, onchange: () => set(row, i) });
    return el("label", {}, input, el("span", {}, el("b", {}, String(i + 1)), " ", text));
  }
  function set(row, i) {
    values[row] = inputs[row].options[i].value;
    done.disabled = values.includes(null);
  }
  function finish() {
    if (values.includes(null)) focusRow(values.indexOf(null));
    else if (inputs.length === 1 && inputs[0].name === "") submit(values[0]);
    // an own field whatever its name: "__proto__" is a name like any other
    else submit(Object.fromEntries(inputs.map((input, row) => [input.name, values[row]])));
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
    layout: "sheet",
    card: () => [],
    actions: [el("div", { class: "scores" }, ...rows), done],
    keys: [...(most ? [[`1 – ${Math.min(most, 9)}`, "Answer the next question"]] : []), ["Tab, arrows", "Go back and change an answer"], ["Enter", label]],
    press(key) {
      if (/^[1-9]$/.test(key)) choose(Number(key));
      else if (key === "Enter") finish();
      else return false;
      return true;
    },
  };
}

export function controlsOf(item, submit) {
  const { inputs } = item.form;
  const alone = inputs.length === 1 && inputs[0].name === "";
  const draw = (alone && { choice, order }[inputs[0].type]) || sheet;
  const controls = draw(item.form, item, submit);
  return { ...controls, question: item.form.question, keys: item.form.shortcuts.length ? item.form.shortcuts : controls.keys };
}
