// The page: photos come in, answers are shown. Nothing is stored.

import { bdi, cardView, make, trainingWords } from "./answers.js";
import { animalCard, photoCard } from "./cards.js";
import { Problem, explain, predict, readCard } from "./server.js";
import { count, describeProblem, inShort } from "./words.js";

const at = (id) => document.getElementById(id);
const photos = []; // in the order in which they came
const animal = { name: "All photos together", state: "new", answer: null, problem: null, key: "" };
let round = new AbortController(); // stops everything that is under way
let card = null; // of the models

// ---- Photos in and out ----

function add(files) {
  for (const file of files) {
    const photo = {
      file, name: file.name || "pasted photo", url: URL.createObjectURL(file),
      state: "new", answer: null, problem: null, reasons: new Map(), shown: "",
    };
    photo.card = photoCard(photo, {
      remove: () => remove(photo),
      retry: () => { photo.state = "new"; update(); },
      why: (head, label) => toggleWhy(photo, head, label),
      canExplain: () => card?.can_explain === true,
      isFolded: isTogether,
      isStretched: (head) => (head === "species" ? card.stage1
        : card.specialists?.[photo.answer.species.label])?.preprocessing?.resize === "stretch",
    });
    photos.push(photo);
    at("photos").append(photo.card.node);
    photo.card.show();
  }
  if (files.length) update();
}

function remove(photo) {
  const place = photos.indexOf(photo);
  const next = photos[place + 1] ?? photos[place - 1];
  photos.splice(place, 1);
  forget(photo);
  (next?.card.node ?? at("choose")).focus();
  update();
}

function forget(photo) {
  photo.isGone = true;
  for (const url of [photo.url, ...photo.reasons.values()]) URL.revokeObjectURL(url);
  photo.card.node.remove();
}

function clear() {
  stop();
  photos.splice(0).forEach(forget);
  at("log").replaceChildren();
  at("choose").focus();
  update();
}

// ---- Predicting ----

const isOpen = ({ state }) => state === "waiting" || state === "running";
const isTogether = () => at("form").elements.mode.value === "one" && photos.length > 1;

/** Predict whatever is not predicted yet. */
async function update() {
  if (!card) await readFacts();
  const together = isTogether();
  const key = together ? photos.map(({ url }) => url).join(" ") : "";
  if (key !== animal.key) {
    stop();
    Object.assign(animal, { key, state: "new", answer: null });
    for (const photo of photos) photo.card.show(); // attributes are folded, or no longer
  }
  document.body.classList.toggle("busy-page", photos.length > 0);
  at("work").hidden = photos.length === 0;
  at("animal").hidden = at("alone").hidden = !together;
  if (together && animal.state === "new") predictTogether();
  if (!together) for (const photo of photos) if (photo.state === "new") predictAlone(photo);
  showProgress();
}

const predictAlone = (photo) =>
  follow(photo, (signal, note) => predict([photo.file], false, signal, note));

function predictTogether() {
  const members = [...photos];
  animal.card = animalCard(animal, members, { retry: () => { animal.state = "new"; update(); } });
  at("animal").replaceChildren(animal.card.node);
  follow(animal, async (signal, note) => {
    const files = members.map(({ file }) => file);
    const found = await predict(files, true, signal, note).catch((error) => {
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
async function follow(subject, work) {
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
  at("log").append(make("p", {}, bdi(subject.name), `: ${inShort(subject)}`));
}

/** Stop whatever is under way; it can be started anew. */
function stop() {
  round.abort();
  round = new AbortController();
  for (const subject of [...photos, animal]) if (isOpen(subject)) subject.state = "new";
}

async function toggleWhy(photo, head, label) {
  const key = `${head} ${label}`;
  photo.shown = photo.shown === key ? "" : key;
  if (!photo.shown) return photo.card.showWhy(head, label, null);
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
  return undefined;
}

// ---- The frame around the cards ----

function showProgress() {
  const numDone = photos.filter(({ answer }) => answer?.species).length;
  at("progress").textContent = `${numDone} of ${count(photos.length, "photo")} answered`;
}

async function readFacts() {
  card = await readCard();
  at("facts").replaceChildren(...cardView(card));
  if (card?.formats?.includes("HEIF")) at("choose").accept = "image/*,.heic,.heif";
  at("trained").textContent = card ? trainingWords(card) : "";
}

// ---- Hands ----

at("choose").addEventListener("change", ({ target }) => {
  const files = [...target.files];
  target.value = ""; // so that the same photo can be chosen again
  add(files);
});
at("form").addEventListener("change", ({ target }) => target.name === "mode" && update());
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
document.addEventListener("drop", (event) => {
  at("veil").hidden = true;
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  add(event.dataTransfer.files);
});

readFacts();
add([...at("choose").files]); // those chosen before this script ran
