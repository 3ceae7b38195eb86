// Every sentence that depends on an answer, and how numbers and names are shown.

const HEADS = {
  species: "Species", breed: "Breed", gender: "Gender",
  color: "Colour", color1: "Colour 1", color2: "Colour 2",
};

export const headName = (head) => HEADS[head] ?? head;

/** A probability as text; never "100 %" or "0 %" for what is not. */
export function percent(probability) {
  if (!Number.isFinite(probability)) return "–";
  if (probability > 0.9995 && probability < 1) return "> 99.9 %";
  if (probability < 0.0005 && probability > 0) return "< 0.1 %";
  return `${(probability * 100).toFixed(1)} %`;
}

export const count = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;

/** The size of a file as text. */
export const size = (bytes) =>
  bytes < 1e5 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

/** One line for a screen reader. */
export function inShort({ answer, problem }) {
  if (!answer?.species) return describeProblem(problem ?? answer).title;
  return [["species", answer.species], ...Object.entries(answer.attributes)]
    .map(([head, { label, topk, sure }]) => `${headName(head)}: ${
      sure === false ? `${label}, unsure` : `${label}, ${percent(topk[0]?.[1])}`}`)
    .join(", ");
}

/** What went wrong, what to do, and whether trying again can help. */
export function describeProblem({ code = 0, status = "", message = "" }) {
  const kind = message.includes("HEIC photo") ? "heic" : status;
  return PROBLEMS[kind] ?? (code >= 500 ? PROBLEMS.failed : PROBLEMS.odd);
}

const PROBLEMS = {
  unreadable: {
    title: "Not a photo that the server can read.",
    advice: "Open it in a picture program, save it as JPEG or PNG, then choose it again.",
  },
  heic: {
    title: "This is a HEIC photo, which this server does not read.",
    advice: "Save it as JPEG. An iPhone takes JPEG by Settings, Camera, Formats, Most Compatible.",
  },
  too_large: {
    title: "This photo is larger than the server accepts.",
    advice: "Save it smaller, then choose it again.",
  },
  non_finite: {
    title: "The network's output for this photo is not a number.",
    advice: "That is a fault of the network. Other photos may work; training in fp32 helps.",
  },
  refused: {
    title: "The server refuses requests from this page.",
    advice: "Open the page under the address that the server printed.",
  },
  timeout: { title: "Sending the photo took too long.", canRetry: true },
  invalid: { title: "The server does not accept these photos together." },
  busy: { title: "The server is busy.", advice: "Several attempts failed.", canRetry: true },
  offline: {
    title: "The server does not answer, or the file was moved.",
    advice: "Is the server still running? Start it with python -m tools.serve.",
    canRetry: true,
  },
  failed: { title: "Something failed on the server; its log says what.", canRetry: true },
  odd: { title: "The server sent an answer that this page does not understand.", canRetry: true },
};
