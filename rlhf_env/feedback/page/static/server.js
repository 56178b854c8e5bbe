// Talking to the server. A vote is kept in the tab until the server has said that it is on the disk: it survives a
// reload, a lost connection and a server that was killed, and its key makes sending it twice harmless.

const PENDING = "pending vote";
const HISTORY = "judged items";
const JUDGE = "who judges in this tab";
const DRAFT = "not judged yet";
let csrf = "";

// The server said no: `status` is HTTP's, the message is for people.
export class Refused extends Error {
  constructor(status, problems) {
    super(problems.join("; "));
    this.status = status;
  }
}

async function send(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: body ? { "Content-Type": "application/json", "X-CSRF-Token": csrf } : {},
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(40_000),
  });
  const said = await response.json().catch(() => ({ problems: [`the server answered ${response.status}`] }));
  if (!response.ok) throw new Refused(response.status, said.problems);
  return said;
}

const mayPass = (error) => !(error instanceof Refused) || error.status >= 500 || [408, 429].includes(error.status);

// For requests that change nothing when they come twice: until the server answers. `onWait` is told why it takes long.
async function insist(path, body, onWait) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      return await send("POST", path, body);
    } catch (error) {
      if (!mayPass(error)) throw error;
      onWait(error instanceof Refused ? error.message : "The server cannot be reached");
      await new Promise((go) => setTimeout(go, wait));
    }
  }
}

export async function session() {
  const said = await send("GET", "/api/session");
  csrf = said.csrf;
  return said;
}

// The browser's tabs share one session, and this tab may have been somebody else's: what that person judged here is
// neither sent nor taken back by whoever judges now. Returns the name of a person whose vote is thrown away.
export function belongsTo(annotator) {
  const before = recall(JUDGE);
  const lost = before !== null && before !== annotator && pending() !== null ? before : null;
  if (before !== annotator) forget();
  keep(JUDGE, annotator);
  return lost;
}

export async function enter(token, annotator) {
  const said = await send("POST", "/api/enter", { token, annotator });
  csrf = said.csrf;
  return said;
}

export const next = (onWait) => insist("/api/next", {}, onWait);

export const agreement = () => send("GET", "/api/agreement");

export const results = (token) => send("POST", "/api/results", { token });

const recall = (what) => JSON.parse(sessionStorage.getItem(what) ?? "null");
const keep = (what, value) => sessionStorage.setItem(what, JSON.stringify(value));

export const pending = () => recall(PENDING);

// Whoever judges next in this tab must not take back, or send, what somebody else judged.
export function forget() {
  sessionStorage.clear();
}

// What was filled in of an item and is no vote yet: it survives a reload, and a look at something else.
export const draft = (item) => {
  const kept = recall(DRAFT);
  return kept?.ticket === item.ticket ? kept : { ticket: item.ticket, form: null, note: "", flag: false };
};
export const keepDraft = (what) => keep(DRAFT, what);

export const own = (before) => send("POST", "/api/own", { before });
export const reopen = (item) => send("POST", "/api/open", { item });

// `said` is what forms.js submits, with the comment, the flag, and `instead` where it takes the place of an earlier vote.
export async function vote({ id, ticket }, said, seconds, onWait) {
  keep(PENDING, { item: id, ticket, ...said, seconds, key: crypto.getRandomValues(new Uint32Array(4)).join("-") });
  return deliver(onWait);
}

// Sends the vote that is waiting. It stops waiting when the server has taken or refused it, never before.
export async function deliver(onWait) {
  const waiting = pending();
  try {
    const said = await insist("/api/vote", waiting, onWait);
    keep(HISTORY, [...(recall(HISTORY) ?? []), waiting.item].slice(-1000));
    sessionStorage.removeItem(PENDING);
    if (recall(DRAFT)?.ticket === waiting.ticket) sessionStorage.removeItem(DRAFT);
    return said;
  } catch (error) {
    if (![401, 403].includes(error.status)) sessionStorage.removeItem(PENDING);
    throw error;
  }
}

// The item is named, so that asking twice takes back one vote. After a reload elsewhere only the server knows which.
export async function undo(onWait) {
  const judged = recall(HISTORY) ?? [];
  const item = judged.pop() ?? null;
  const said = item === null ? await send("POST", "/api/undo", { item }) : await insist("/api/undo", { item }, onWait);
  keep(HISTORY, judged);
  return said;
}
