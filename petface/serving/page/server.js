// Requests to the server: a few at a time, repeated while it is busy, stopped by a signal.

const NUM_AT_ONCE = 3;
const MAX_TRIES = 5;

/** Why there is no answer: `code` of HTTP, `status` and `message` of the server. */
export class Problem extends Error {
  constructor(code, status, message = "") {
    super(message);
    this.code = code;
    this.status = status;
  }
}

/** Return the answer of a route to photos in a form's field. `note` learns what happens. */
export async function ask(path, field, files, signal, note) {
  const response = await post(path, field, files, signal, note);
  return response.json().catch(() => { throw new Problem(response.status, "odd"); });
}

/** Return the picture of the places that raised an answer, as a Blob. */
export async function explain(file, species, head, label, signal) {
  const query = new URLSearchParams({ species, head, label });
  return (await post(`explain?${query}`, "photo", [file], signal, () => {})).blob();
}

/** Return the model card; null where there is none. */
export async function readCard() {
  try {
    const response = await fetch("model_card", { cache: "no-store" });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

const line = [];
let numRunning = 0;

async function post(path, field, files, signal, note) {
  if (numRunning < NUM_AT_ONCE) numRunning += 1;
  else await new Promise((go) => line.push(go)); // is handed the place of one that ends
  try {
    signal.throwIfAborted();
    note({ state: "running" });
    return await postInTurn(path, field, files, signal, note);
  } finally {
    const next = line.shift();
    if (next) next();
    else numRunning -= 1;
  }
}

async function postInTurn(path, field, files, signal, note) {
  const body = new FormData();
  for (const file of files) body.append(field, file, file.name || "pasted.png");
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(path, { method: "POST", body, signal, credentials: "omit" })
      .catch(() => { throw new Problem(0, "offline"); });
    if (response.ok) return response;
    if (response.status !== 503 || attempt === MAX_TRIES) {
      const { status, message } = await response.json().catch(() => ({}));
      throw new Problem(response.status, status ?? "", message ?? "");
    }
    const wanted = Number(response.headers.get("Retry-After")) || attempt;
    for (let left = Math.min(wanted, 30); left > 0; left -= 1) {
      note({ wait: left });
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
    note({ wait: 0 });
  }
}
