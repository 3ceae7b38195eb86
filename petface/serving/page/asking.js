// Questions to the server: a few at a time, asked again while it is busy, stopped by a signal.

const TOPK = 5;
const NUM_AT_ONCE = 3;
const MAX_TRIES = 5;
const LONGEST_WAIT_S = 30;
const FACTS_PATIENCE_S = 10;

/** Why there is no answer: `code` of HTTP, `status` and `message` of the server. */
export class Problem extends Error {
  constructor(code, status, message = "") {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** Ask about one photo. `onWait(seconds)` is called each second while the server is busy. */
export const askAboutPhoto = (file, signal, onStart, onWait) =>
  inTurn(async () => {
    onStart();
    const path = `predict?topk=${TOPK}`;
    return readJson(await post(path, "photo", [file], signal, onWait));
  }, signal);

/** Ask about several photos of one animal. */
export const askAboutAnimal = (files, signal, onStart, onWait) =>
  inTurn(async () => {
    onStart();
    const path = `predict_animal?topk=${TOPK}`;
    return readJson(await post(path, "photos", files, signal, onWait));
  }, signal);

/** Fetch the picture of what speaks for a label, as a Blob. */
export const askWhy = (file, species, head, label, signal) =>
  inTurn(async () => {
    const query = new URLSearchParams({ species, head, label });
    const response = await post(`explain?${query}`, "photo", [file], signal, () => {});
    return response.blob();
  }, signal);

/** Read the model card; null where there is none. */
export async function readFacts() {
  try {
    const signal = AbortSignal.timeout(FACTS_PATIENCE_S * 1000);
    const response = await fetch("model_card", { signal, cache: "no-store" });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

const line = [];
let numRunning = 0;

async function inTurn(work, signal) {
  if (numRunning < NUM_AT_ONCE) numRunning += 1;
  else await new Promise((go) => line.push(go)); // is handed the place of one that ends
  try {
    signal.throwIfAborted();
    return await work();
  } finally {
    const next = line.shift();
    if (next) next();
    else numRunning -= 1;
  }
}

async function post(path, field, files, signal, onWait) {
  const body = new FormData();
  for (const file of files) body.append(field, file, file.name || "pasted.png");
  for (let attempt = 1; ; attempt += 1) {
    const response = await send(path, body, files, signal);
    if (response.ok) return response;
    const isBusy = response.status === 503 || response.status === 429;
    if (!isBusy || attempt === MAX_TRIES) throw await problemOf(response);
    await countDown(waitSeconds(response, attempt), signal, onWait);
  }
}

async function send(path, body, files, signal) {
  try {
    return await fetch(path, { method: "POST", body, signal, credentials: "omit" });
  } catch {
    signal.throwIfAborted();
    const first = Promise.all(files.map((file) => file.slice(0, 1).arrayBuffer()));
    const isThere = await first.then(() => true, () => false); // moved, changed, or a folder
    throw new Problem(0, isThere ? "offline" : "lost");
  }
}

async function problemOf(response) {
  const words = await response.json().catch(() => ({}));
  const { status, message, detail } = words ?? {};
  const said = message ?? (typeof detail === "string" ? detail : "");
  return new Problem(response.status, typeof status === "string" ? status : "", String(said));
}

async function readJson(response) {
  try {
    return await response.json();
  } catch {
    throw new Problem(response.status, "odd");
  }
}

function waitSeconds(response, attempt) {
  const asked = response.headers.get("Retry-After");
  const seconds = /^\d+$/.test(asked ?? "") ? Number(asked) : (Date.parse(asked) - Date.now()) / 1000;
  const wait = Number.isFinite(seconds) ? Math.ceil(seconds) : attempt;
  return Math.min(Math.max(wait, 1), LONGEST_WAIT_S);
}

async function countDown(seconds, signal, onWait) {
  for (let left = seconds; left > 0; left -= 1) {
    onWait(left);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
  }
  onWait(0);
}
