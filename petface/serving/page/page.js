// The page: photos come in, questions go out, answers are shown. Nothing is stored.

import { Problem, askAboutAnimal, askAboutPhoto, askWhy, readFacts } from "./asking.js";
import { make } from "./answers.js";
import { animalCard, photoCard } from "./cards.js";
import { factsView, rulesOf } from "./facts.js";
import { count, describeProblem, inShort, size } from "./words.js";

const at = (id) => document.getElementById(id);
const photos = []; // in the order in which they came
const animal = { state: "new", answer: null, problem: null, card: null };
const tally = { total: 0, done: 0 };
let round = new AbortController(); // stops everything that is being asked
let isOneAnimal = false;
let rules = rulesOf(null);
let factsRead = readRules();

async function readRules() {
  const card = await readFacts();
  rules = rulesOf(card);
  at("facts").replaceChildren(...factsView(card));
  at("wanted").textContent = rules.wanted;
  return card !== null;
}

// ---- Photos in and out ----

function add(files) {
  const chosen = [...files];
  if (!chosen.length) return;
  for (const file of chosen) {
    const photo = {
      file, name: file.name || "pasted photo", url: URL.createObjectURL(file),
      state: "new", answer: null, problem: null, mayExceed: false, reasons: new Map(), shown: null,
    };
    photo.card = photoCard(photo, {
      remove: () => remove(photo),
      retry: () => askAgain(photo),
      send: () => { photo.mayExceed = true; askAgain(photo); },
      why: (head, label) => toggleWhy(photo, head, label),
      canExplain: () => rules.canExplain,
      isFolded: () => isOneAnimal && photos.length > 1,
      isStretched: (head) => rules.isStretched(photo.answer?.species?.label, head),
    });
    photos.push(photo);
    at("photos").append(photo.card.node);
    photo.card.show();
  }
  askOpenQuestions();
}

function remove(photo) {
  const place = photos.indexOf(photo);
  const next = photos[place + 1] ?? photos[place - 1];
  photo.isGone = true;
  photos.splice(place, 1);
  forget(photo);
  (next?.card.node ?? at("choose")).focus();
  askOpenQuestions();
}

function forget(photo) {
  URL.revokeObjectURL(photo.url);
  for (const url of photo.reasons.values()) URL.revokeObjectURL(url);
  photo.card.node.remove();
}

function clear() {
  stop("cleared");
  for (const photo of photos.splice(0)) {
    photo.isGone = true;
    forget(photo);
  }
  at("log").replaceChildren();
  askOpenQuestions();
  at("choose").focus();
}

// ---- Asking ----

const isOpen = ({ state }) => state === "waiting" || state === "asking";

async function askOpenQuestions() {
  if (!(await factsRead)) await (factsRead = readRules());
  const isTogether = isOneAnimal && photos.length > 1;
  if (!isTogether && isOpen(animal)) stop("replaced");
  showFrame(isTogether);
  if (isTogether) return askTogether();
  for (const photo of photos) if (photo.state === "new") askAlone(photo);
  return showProgress();
}

function askAgain(photo) {
  Object.assign(photo, { state: "new", answer: null, problem: null });
  askOpenQuestions();
}

async function askAlone(photo) {
  if (photo.file.size > rules.maxBodyBytes && !photo.mayExceed) {
    return hold(photo, `This photo has ${size(photo.file.size)}; this server takes ` +
      `${rules.maxBodyMb} MB, so it will likely be refused.`);
  }
  return follow([photo], photo, (signal, onStart, onWait) =>
    askAboutPhoto(photo.file, signal, onStart, onWait));
}

async function askTogether() {
  const members = [...photos];
  const key = members.map(({ url }) => url).join(" ");
  if (animal.key === key && animal.state !== "new") return;
  stop("replaced");
  const mayExceed = animal.mayExceed && animal.key === key;
  Object.assign(animal, { key, state: "new", answer: null, problem: null, wait: 0, mayExceed });
  animal.card = animalCard(animal, members, {
    retry: () => { animal.state = "new"; askOpenQuestions(); },
    send: () => { Object.assign(animal, { state: "new", mayExceed: true }); askOpenQuestions(); },
  });
  const hadFocus = at("animal").contains(document.activeElement);
  at("animal").replaceChildren(animal.card.node);
  if (hadFocus) animal.card.node.focus({ preventScroll: true });
  const numBytes = sizeOf(members);
  if (members.length > rules.maxPhotos) {
    animal.canSend = false;
    return hold(animal, `This server takes ${count(rules.maxPhotos, "photo")} of one animal. ` +
      `Remove ${count(members.length - rules.maxPhotos, "photo")} below.`);
  }
  animal.canSend = true;
  if (numBytes > rules.maxBodyBytes && !mayExceed) {
    return hold(animal, `These photos have ${size(numBytes)} together; this server takes ` +
      `${rules.maxBodyMb} MB, so they will likely be refused. Removing some helps.`);
  }
  return follow(members, animal, async (signal, onStart, onWait) => {
    const files = members.map(({ file }) => file);
    const found = await askAboutAnimal(files, signal, onStart, onWait).catch((error) => {
      if (error.status !== "unreadable") throw error;
      return { photos: members.map(() => ({ status: "unreadable" })) };
    });
    if (signal.aborted) return null;
    members.forEach((photo, place) => {
      const answer = found?.photos?.[place] ?? null;
      Object.assign(photo, { answer, problem: null, state: answer ? "done" : "new" });
      photo.card.show();
      if (answer) say(`${photo.name}: ${inShort(answer)}`);
    });
    if (!found?.animal) throw new Problem(200, found?.photos ? "none_readable" : "odd");
    return found.animal;
  });
}

const sizeOf = (members) => members.reduce((sum, { file }) => sum + file.size, 0);

/** Ask, and show on the subject's card what becomes of it; `members` are counted. */
async function follow(members, subject, ask) {
  const { signal } = round;
  const show = () => { if (!subject.isGone && !signal.aborted) subject.card.show(); };
  tally.total += members.length;
  Object.assign(subject, { state: "waiting", problem: null, wait: 0 });
  show();
  showProgress();
  try {
    const answer = await ask(signal,
      () => { subject.state = "asking"; show(); },
      (seconds) => { subject.wait = seconds; show(); });
    if (signal.aborted) return;
    subject.answer = answer && typeof answer === "object" ? answer : { status: "odd" };
  } catch (error) {
    if (signal.aborted) return;
    const { code = 0, status = "odd", message } = error;
    // A server that refuses a large upload may close the line before it is heard.
    const isBody = sizeOf(members) > rules.maxBodyBytes && (code === 413 || status === "offline");
    const kind = isBody ? "body" : status;
    subject.problem = { code, status: kind, message, limitMb: rules.maxBodyMb };
  }
  subject.state = "done";
  show();
  if (!subject.isGone) say(`${subject.name ?? "All photos together"}: ${inShort(subject.problem
    ? subject : subject.answer)}`);
  tally.done += members.length;
  showProgress();
}

function hold(subject, words) {
  Object.assign(subject, { state: "held", held: words });
  subject.card.show();
  say(words);
  showProgress();
}

/** Stop whatever is being asked; `reason` "cancelled" is shown and can be asked again. */
function stop(reason) {
  round.abort(reason);
  round = new AbortController();
  Object.assign(tally, { total: 0, done: 0 });
  for (const subject of [...photos, animal]) {
    if (!isOpen(subject)) continue;
    const isShown = reason === "cancelled";
    Object.assign(subject, { state: isShown ? "done" : "new", wait: 0,
      problem: isShown ? { status: "cancelled" } : null });
    subject.card?.show();
  }
  showProgress();
}

// ---- What speaks for an answer ----

async function toggleWhy(photo, head, label) {
  const key = `${head} ${label}`;
  photo.shown = photo.shown === key ? null : key;
  if (!photo.shown) return photo.card.showWhy(head, label, null);
  if (photo.reasons.has(key)) return photo.card.showWhy(head, label, photo.reasons.get(key));
  photo.card.showWhy(head, label, null, "Looking for what speaks for it …");
  const { signal } = round;
  try {
    const species = photo.answer.species.label;
    const picture = await askWhy(photo.file, species, head, label, signal);
    if (photo.isGone) return undefined;
    photo.reasons.set(key, URL.createObjectURL(picture));
    if (photo.shown === key) photo.card.showWhy(head, label, photo.reasons.get(key));
  } catch (error) {
    if (photo.shown !== key || photo.isGone) return undefined;
    photo.shown = null;
    const words = signal.aborted ? null
      : `No picture of it: ${error.message || describeProblem(error).title}`;
    photo.card.showWhy(head, label, null, words);
  }
  return undefined;
}

// ---- The frame around the cards ----

function showFrame(isTogether) {
  document.body.classList.toggle("busy-page", photos.length > 0);
  at("work").hidden = photos.length === 0;
  if (at("alone").hidden === isTogether) for (const photo of photos) photo.card.show(); // fold
  at("animal").hidden = at("alone").hidden = !isTogether;
  if (isTogether) return;
  at("animal").replaceChildren();
  Object.assign(animal, { key: "", card: null, state: "new" });
}

function showProgress() {
  const isBusy = tally.done < tally.total;
  at("cancel").hidden = !isBusy;
  at("meter").hidden = !isBusy;
  at("meter").max = Math.max(tally.total, 1);
  at("meter").value = tally.done;
  const numDone = photos.filter(({ answer }) => answer?.species).length;
  const numHeld = [...photos, animal].filter(({ state }) => state === "held").length;
  at("progress").textContent = isBusy
    ? `Asking: ${tally.done} of ${count(tally.total, "photo")} answered`
    : `${numDone} of ${count(photos.length, "photo")} answered` +
      (numHeld ? ", waiting for your decision below" : "");
  if (!isBusy) Object.assign(tally, { total: 0, done: 0 });
}

const say = (words) => at("log").append(make("p", {}, words));

// ---- Hands ----

at("choose").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  target.value = ""; // so that the same photo can be chosen again
  add(files);
});
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => {
    isOneAnimal = at("ask").elements.mode.value === "one";
    askOpenQuestions();
  });
}
at("ask").addEventListener("submit", (event) => event.preventDefault());
at("cancel").addEventListener("click", () => { stop("cancelled"); at("clear").focus(); });
at("clear").addEventListener("click", clear);
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && tally.done < tally.total) stop("cancelled");
});
document.addEventListener("paste", ({ clipboardData }) => add(clipboardData?.files ?? []));

const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  at("veil").hidden = false;
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) at("veil").hidden = true; // the pointer left the window
});
document.addEventListener("drop", (event) => {
  at("veil").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  const items = [...event.dataTransfer.items].filter(({ kind }) => kind === "file");
  const folders = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory);
  const files = items.filter((item) => !folders.includes(item)).map((item) => item.getAsFile());
  at("folders").hidden = folders.length === 0;
  add(files);
});

isOneAnimal = at("ask").elements.mode.value === "one";
add(at("choose").files); // those chosen before this script ran
