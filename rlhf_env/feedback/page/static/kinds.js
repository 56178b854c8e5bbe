// The four kinds of judgement. Each function takes an item and `submit(answer)`, and gives
//   question   what is asked, as text
//   card(i)    nodes that go under response i
//   actions    nodes for the bar at the bottom
//   keys       [[key, meaning]], as shown to people
//   press(key) true when the key meant something

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "onchange") made[name] = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children); // strings become text nodes: nothing that was written by others is ever read as HTML
  return made;
}

export const button = (label, key, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, "aria-keyshortcuts": key, ...attributes }, label, " ", key ? el("kbd", {}, key) : "");
const digit = (i) => (i < 9 ? String(i + 1) : null); // the tenth response has a button, and no key

const ORDINALS = ["1st", "2nd", "3rd"];
const ordinal = (place) => ORDINALS[place - 1] ?? `${place}th`;
const SCALE = ["very bad", "bad", "fair", "good", "very good"];
const by = (item) => (item.criteria[0].name === "overall" ? "" : ` by “${item.criteria[0].label}”`);

function comparison(item, submit) {
  const choices = [
    ["1", "first", "Response 1 is better"],
    ["2", "second", "Response 2 is better"],
    ["t", "tie", "Equally good"],
    ["n", "cannot say", "Cannot say"],
  ];
  return {
    question: `Which response is better${by(item)}?`,
    card: (i) => [button(`Response ${i + 1} is better`, choices[i][0], () => submit(choices[i][1]), { class: "main" })],
    actions: choices.slice(2).map(([key, answer, label]) => button(label, key, () => submit(answer))),
    keys: choices.map(([key, , label]) => [key, label]),
    press(key) {
      const choice = choices.find(([its]) => its === key);
      if (choice) submit(choice[1]);
      return Boolean(choice);
    },
  };
}

function rating(item, submit) {
  return {
    question: `How good is this response${by(item)}?`,
    card: () => [],
    actions: SCALE.map((label, i) => button(label, String(i + 1), () => submit(i + 1), { class: "score" })),
    keys: [["1 – 5", "Very bad to very good"]],
    press(key) {
      if (!/^[1-5]$/.test(key)) return false;
      submit(Number(key));
      return true;
    },
  };
}

function ranking(item, submit) {
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
    question: `Put the responses in order${by(item)}, the best first.`,
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

function criteria(item, submit) {
  const scores = item.criteria.map(() => null);
  const done = button("Submit scores", "Enter", () => finish(), { class: "main", disabled: true });
  const rows = item.criteria.map((criterion, row) =>
    el(
      "fieldset",
      {},
      el("legend", {}, criterion.label),
      criterion.guidelines ? el("p", { class: "guidelines" }, criterion.guidelines) : "",
      el("div", { class: "scale" }, ...SCALE.map((label, i) => choice(row, i + 1, label))),
    ),
  );

  function choice(row, score, label) {
    const input = el("input", { type: "radio", name: `criterion ${row}`, onchange: () => set(row, score) });
    return el("label", {}, input, el("span", {}, el("b", {}, String(score)), " ", label));
  }
  function set(row, score) {
    scores[row] = score;
    done.disabled = scores.includes(null);
  }
  function finish() {
    if (scores.includes(null)) rows[scores.indexOf(null)].querySelector("input").focus();
    // an own field whatever its name: "__proto__" is a name like any other
    else submit(Object.fromEntries(item.criteria.map((criterion, row) => [criterion.name, scores[row]])));
  }
  function score(number) {
    const focused = rows.findIndex((row) => row.contains(document.activeElement));
    const row = focused >= 0 ? focused : scores.indexOf(null);
    if (row < 0) return;
    rows[row].querySelectorAll("input")[number - 1].checked = true;
    set(row, number);
    if (row + 1 < rows.length) focusRow(row + 1);
    else done.focus();
  }
  function focusRow(row) {
    (rows[row].querySelector("input:checked") ?? rows[row].querySelector("input")).focus();
  }
  return {
    question: "How good is this response by each of these?",
    card: () => [],
    actions: [el("div", { class: "scores" }, ...rows), done],
    keys: [
      ["1 – 5", "Score the next criterion, very bad to very good"],
      ["Tab, arrows", "Go back and change a score"],
      ["Enter", "Submit the scores"],
    ],
    press(key) {
      if (/^[1-5]$/.test(key)) score(Number(key));
      else if (key === "Enter") finish();
      else return false;
      return true;
    },
  };
}

export const kinds = { comparison, rating, ranking, criteria };
