// The page: photos come in, answers are shown. Nothing is stored.

import { answerView, bdi, cardView, make, trainingWords } from "./answers.js";
import { animalCard, photoCard } from "./cards.js";
import { droppedFiles, folderOf, matchView } from "./gallery.js";
import { Problem, ask, explain, readCard } from "./server.js";
import { count, describeProblem, inShort } from "./words.js";

const TOPK = 5;
const at = (id) => document.getElementById(id);
const photos = []; // in the order in which they came
const animal = { name: "All photos together", state: "new", key: false };
let round = new AbortController(); // stops everything that is under way
let card = null; // of the models
const asksWho = () => at("form").elements.question.value === "who";

// ---- Photos in and out ----

function add(files) {
  if (!files.length) return;
  const given = at("name").value.trim();
  for (const file of [...files].filter(({ name }) => !name.startsWith("."))) {
    const known = asksWho() ? folderOf(file) || given : ""; // the animal's name
    const name = known || file.name || "pasted photo";
    const query = { name, state: "new" }; // who it is, which is another network's to answer
    const photo = {
      file, name, known, query, url: URL.createObjectURL(file),
      state: "new", answer: null, problem: null, reasons: new Map(), shown: "",
    };
    photo.card = query.card = photoCard(photo, {
      asked: (why) => (asksWho()
        ? { subject: query, parts: query.answer && (known ? [] : matchView(query.answer, photos)) }
        : { subject: photo,
          parts: photo.answer?.species && answerView(photo.answer, why, isTogether()) }),
      remove: () => remove(photo),
      retry: () => { (asksWho() ? query : photo).state = "new"; update(); },
      why: (head, label) => toggleWhy(photo, head, label),
      canExplain: () => card?.can_explain === true,
      isStretched: (head) => (head === "species" ? card.stage1
        : card.specialists?.[photo.answer.species.label])?.preprocessing?.resize === "stretch",
    });
    photos.push(photo);
    at(known ? "gallery" : "photos").append(photo.card.node);
    photo.card.show();
  }
  at("name").value = "";
  update();
}

function remove(photo) {
  const place = asked().indexOf(photo);
  const next = asked()[place + 1] ?? asked()[place - 1];
  forget(photo);
  (next?.card.node ?? at("choose")).focus();
  update();
}

function forget(photo) {
  photo.isGone = photo.query.isGone = true;
  for (const url of [photo.url, ...photo.reasons.values()]) URL.revokeObjectURL(url);
  photo.card.node.remove();
  photos.splice(photos.indexOf(photo), 1);
}

function clear() {
  stop();
  asked().forEach(forget);
  at("log").replaceChildren();
  at("choose").focus();
  update();
}

// ---- Answers ----

const isOpen = ({ state }) => state === "waiting" || state === "running";
const asked = () => photos.filter(({ known }) => asksWho() || !known);
const isTogether = () =>
  !asksWho() && at("form").elements.mode.value === "one" && asked().length > 1;

/** Predict or embed whatever is not yet. */
async function update() {
  if (!card) await readFacts();
  const together = isTogether();
  const key = together ? asked().map(({ url }) => url).join(" ") : asksWho();
  const isOther = key !== animal.key; // attributes are folded, or no longer
  if (isOther) {
    stop();
    Object.assign(animal, { key, state: "new", answer: null });
  }
  for (const photo of photos) if (isOther || (asksWho() && !photo.known)) photo.card.show();
  document.body.classList.toggle("busy-page", photos.length > 0);
  at("work").hidden = asked().length === 0;
  at("animal").hidden = at("alone").hidden = !together;
  if (together && animal.state === "new") predictTogether();
  if (!together) asked().forEach(asksWho() ? identify : predictAlone);
  showProgress();
}

const predictAlone = (photo) => photo.state === "new" &&
  follow(photo, (...rest) => ask(`predict?topk=${TOPK}`, "photo", [photo.file], ...rest));

const identify = (photo) => photo.query.state === "new" &&
  follow(photo.query, (...rest) => ask("embed", "photos", [photo.file], ...rest),
    () => photo.card.node.querySelector(".answer, .note")?.textContent ?? "in the gallery")
    .then(() => photos.some(({ query }) => isOpen(query)) || update()); // ranked anew at the end

function predictTogether() {
  const members = asked();
  animal.card = animalCard(animal, members, { retry: () => { animal.state = "new"; update(); } });
  at("animal").replaceChildren(animal.card.node);
  follow(animal, async (signal, note) => {
    const files = members.map(({ file }) => file);
    const path = `predict_animal?topk=${TOPK}`;
    const found = await ask(path, "photos", files, signal, note).catch((error) => {
      if (error.status !== "unreadable") throw error;
      return { photos: files.map(() => ({ status: "unreadable" })) };
    });
    if (signal.aborted) return null;
    members.forEach((photo, place) => {
      Object.assign(photo, { answer: found.photos[place], problem: null, state: "done" });
      photo.card.show();
    });
    if (!found.animal) throw new Problem(200, "unreadable");
    return found.animal;
  });
}

/** Wait for an answer, and show on the subject's card what becomes of it. */
async function follow(subject, work, words = () => inShort(subject)) {
  const { signal } = round;
  const note = (changes) => {
    if (signal.aborted || subject.isGone) return;
    Object.assign(subject, changes);
    subject.card.show();
    showProgress();
  };
  note({ state: "waiting", answer: null, problem: null, wait: 0 });
  try {
    note({ state: "done", answer: await work(signal, note) });
  } catch (problem) {
    note({ state: "done", problem: problem instanceof Problem ? problem : new Problem(0, "odd") });
  }
  if (subject.state !== "done" || signal.aborted || subject.isGone) return;
  at("log").append(make("p", {}, bdi(subject.name), `: ${words()}`));
}

/** Stop whatever is under way; it can be started anew. */
function stop() {
  round.abort();
  round = new AbortController();
  const subjects = [...photos, ...photos.map(({ query }) => query), animal];
  for (const subject of subjects) if (isOpen(subject)) subject.state = "new";
}

async function toggleWhy(photo, head, label) {
  const key = `${head} ${label}`;
  photo.shown = photo.shown === key ? "" : key;
  if (!photo.shown) return void photo.card.showWhy(head, label, null);
  const { signal } = round;
  let words = "Computing the reasons …";
  if (!photo.reasons.has(key)) {
    photo.card.showWhy(head, label, null, words);
    try {
      const species = photo.answer.species.label;
      const picture = await explain(photo.file, species, head, label, signal);
      if (!photo.isGone) photo.reasons.set(key, URL.createObjectURL(picture));
    } catch (error) {
      words = signal.aborted ? "" : `No picture: ${error.message || describeProblem(error).title}`;
    }
  }
  if (photo.shown === key) photo.card.showWhy(head, label, photo.reasons.get(key), words);
}

// ---- The frame around the cards ----

function showProgress() {
  const isDone = ({ answer, query }) => (asksWho() ? query.answer : answer?.species);
  const numDone = asked().filter(isDone).length;
  at("progress").textContent = `${numDone} of ${count(asked().length, "photo")} answered`;
}

async function readFacts() {
  card = await readCard();
  at("facts").replaceChildren(...cardView(card));
  if (card?.formats?.includes("HEIF")) at("choose").accept = "image/*,.heic,.heif";
  at("trained").textContent = card ? trainingWords(card) : "";
  at("questions").hidden = !card?.identity;
}

// ---- Hands ----

at("form").addEventListener("change", ({ target }) => {
  if (target.type === "radio") update();
  if (target.type !== "file") return;
  const files = [...target.files];
  target.value = ""; // so that the same photo can be chosen again
  add(files);
});
at("form").addEventListener("submit", (event) => event.preventDefault());
at("clear").addEventListener("click", clear);
document.addEventListener("paste", ({ clipboardData }) => add(clipboardData?.files ?? []));
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  at("veil").hidden = false;
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) at("veil").hidden = true; // the pointer left the window
});
document.addEventListener("drop", async (event) => {
  at("veil").hidden = true;
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  add(await droppedFiles(event.dataTransfer));
});

readFacts();
add([...at("choose").files]); // those chosen before this script ran
