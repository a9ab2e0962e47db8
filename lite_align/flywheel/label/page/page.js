// The label page: shows what the server says and sends what the annotator says. Foreign text becomes text nodes only.

const at = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const [left, right] = document.querySelectorAll("#answers .text");

const WORDS = { first: "A is better", second: "B is better", tie: "tie", bad: "both bad", skip: "skipped" };
const KEYS = { ArrowLeft: "first", ArrowRight: "second", ArrowUp: "tie", ArrowDown: "bad", " ": "skip" };
const MOST_CATEGORIES = 12;

let annotator = "";
let question = null;
let busy = false;

// Time counts while the page is seen.
const watch = { sum: 0, since: 0 };
const startWatch = () => Object.assign(watch, { sum: 0, since: performance.now() });
const seconds = () => (watch.sum + (document.hidden ? 0 : performance.now() - watch.since)) / 1000;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) watch.sum += performance.now() - watch.since;
  else watch.since = performance.now();
});

// Characters that show nothing, or turn the order of others about: they are shown by their numbers.
const UNSEEN =
  /(?:[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]|(?<![\p{L}\p{M}\p{Extended_Pictographic}\ufe0f])[\u200c\u200d]|[\u200c\u200d](?![\p{L}\p{M}\p{Extended_Pictographic}]))+/gu;

function mark(run) {
  const codes = [...run].map((one) => "U+" + one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
  const span = document.createElement("span");
  span.className = "mark";
  span.textContent = codes.length > 4 ? `${codes.slice(0, 3).join(" ")} … ${codes.length} in all` : codes.join(" ");
  span.title = "characters that do not show";
  return span;
}

function show(element, text) {
  const pieces = [];
  let end = 0;
  const plain = text.replaceAll("\r\n", "\n");
  for (const found of plain.matchAll(UNSEEN)) {
    pieces.push(plain.slice(end, found.index), mark(found[0]));
    end = found.index + found[0].length;
  }
  element.replaceChildren(...pieces, plain.slice(end));
}

function make(name, text, className = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  show(element, text);
  return element;
}

function tell(text, bad = false) {
  at("status").classList.toggle("bad", bad);
  show(at("status"), text);
}

async function ask(path, body) {
  const headers = { "X-Lite-Align-Token": token };
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("The program does not answer. Start it again and open the address that it prints.");
  }
  const content = await answer.json();
  if (content.error) throw new Error(content.error);
  return { state: content, late: answer.status === 409 };
}

function render(state) {
  question = state.question;
  at("bar").max = state.total;
  at("bar").value = state.done;
  show(at("progress"), state.progress);
  show(at("agreement"), state.agreement[0]);
  at("agreement-all").replaceChildren(...state.agreement.map((line) => make("li", line)));
  renderCategories(state.categories);
  at("pair").hidden = !question;
  at("finished").hidden = Boolean(question);
  for (const button of document.querySelectorAll("#votes button")) button.disabled = !question;
  at("note").value = question ? question.note : "";
  if (!question) return;
  at("prompt").replaceChildren(...question.prompt.flatMap(([role, text]) => [make("h2", role), make("div", text, "text")]));
  show(left, question.answers[0]);
  show(right, question.answers[1]);
  for (const box of document.querySelectorAll(".answer")) box.scrollTop = 0;
  at("prompt").scrollTop = at("prompt").scrollHeight; // the last turn is the one that is answered
  startWatch();
}

function renderCategories(categories) {
  const current = question && question.category;
  const few = categories.length <= MOST_CATEGORIES ? categories : categories.filter(([name]) => name === current);
  const chips = few.map(([name, done, total]) => {
    const chip = make("li", `${name} ${String(done).padStart(String(total).length, "\u2007")}/${total}`);
    if (name === current) chip.setAttribute("aria-current", "true");
    return chip;
  });
  at("categories").replaceChildren(...chips);
  at("categories").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// One request at a time: a key that is pressed while a vote is on its way would be a vote on a pair nobody has seen.
async function once(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    tell(error.message, true);
  } finally {
    busy = false;
  }
}

const vote = (said) =>
  once(async () => {
    if (!question) return;
    const { ticket } = question;
    const body = { annotator, ticket, said, seconds: seconds(), note: at("note").value };
    const { state, late } = await ask("api/vote", body);
    render(state);
    at("booth").focus();
    tell(late ? "That was answered already, in another window or before a restart." : `Saved: ${WORDS[said]}.`);
  });

const undo = () =>
  once(async () => {
    const before = question?.ticket;
    const { state } = await ask("api/undo", { annotator });
    render(state);
    at("booth").focus();
    tell(question?.ticket === before ? "There is nothing to take back." : "Taken back: vote again.");
  });

function openRubric() {
  at("rubric").showModal();
}

function keyed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at("booth").hidden || at("rubric").open) return;
  const { target, key } = event;
  if (target.matches("input")) {
    if (key === "Escape" || key === "Enter") at("booth").focus();
    return;
  }
  if (target.matches("button") && (key === " " || key === "Enter")) return;
  if (!at("keys").checked && key !== "?") return;
  const action = KEYS[key] ? () => vote(KEYS[key]) : ACTIONS[key];
  if (!action) return;
  event.preventDefault();
  action();
}

const scroll = (pages) => {
  for (const box of document.querySelectorAll(".answer")) box.scrollBy(0, pages * 0.8 * box.clientHeight);
};

const ACTIONS = {
  n: () => at("note").focus(),
  u: undo,
  "?": openRubric,
  PageUp: () => scroll(-1),
  PageDown: () => scroll(1),
};

async function enter(name) {
  const { state } = await ask(`api/question?annotator=${encodeURIComponent(name)}`);
  annotator = name;
  sessionStorage.setItem("annotator", name);
  show(at("who-name"), name);
  at("door").hidden = true;
  at("booth").hidden = false;
  render(state);
  at("booth").focus();
  tell("");
}

function leave() {
  sessionStorage.removeItem("annotator");
  at("booth").hidden = true;
  at("door").hidden = false;
  at("annotator").focus();
}

function doorTells(error) {
  at("door").hidden = false;
  show(at("door-status"), error.message);
}

async function start() {
  const { state: about } = await ask("api/about");
  document.title = `${about.name} · lite-align label`;
  show(at("door-name"), about.name);
  show(at("votes-name"), about.votes);
  show(at("rubric-text"), about.rubric);
  for (const name of about.annotators) at("annotators").append(Object.assign(document.createElement("option"), { value: name }));
  at("who").disabled = Boolean(about.annotator);
  const name = about.annotator ?? sessionStorage.getItem("annotator");
  if (name) await enter(name);
  else leave();
}

document.addEventListener("keydown", keyed);
for (const button of document.querySelectorAll("#votes button")) button.addEventListener("click", () => vote(button.dataset.said));
at("undo").addEventListener("click", undo);
at("help").addEventListener("click", openRubric);
at("close").addEventListener("click", () => at("rubric").close());
at("rubric").addEventListener("close", () => at("booth").focus());
at("who").addEventListener("click", leave);
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(at("annotator").value.trim().replace(/\s+/gu, " ")).catch(doorTells);
});
start().catch(doorTells);
