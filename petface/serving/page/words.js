// Every sentence that depends on an answer, and how numbers and names are shown.

const HEADS = {
  species: "Species", breed: "Breed", gender: "Gender",
  color: "Colour", color1: "Colour 1", color2: "Colour 2",
};
const FORMATS = "PNG, JPEG, WEBP, GIF, BMP or TIFF";
const MEGABYTE = 1e6;

export const headName = (head) => HEADS[head] ?? head;

/** A probability as text; never "100 %" or "0 %" for what is not. */
export function percent(probability) {
  if (!Number.isFinite(probability)) return "–";
  if (probability > 0.9995 && probability < 1) return "> 99.9 %";
  if (probability < 0.0005 && probability > 0) return "< 0.1 %";
  return `${(probability * 100).toFixed(1)} %`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** The size of a file as text. */
export const size = (bytes) =>
  bytes < MEGABYTE / 10 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / MEGABYTE).toFixed(1)} MB`;

/** One line for a screen reader, and for the log of answers. */
export function inShort(answer) {
  if (answer.problem) return describeProblem(answer.problem).title;
  if (!answer.species) return describeProblem(answer).title;
  const heads = [["species", answer.species], ...Object.entries(answer.attributes ?? {})];
  return heads.map(([head, entry]) => `${headName(head)}: ${spoken(entry)}`).join(", ");
}

const spoken = ({ label, topk, sure }) =>
  sure === false
    ? `unsure, best guess ${label}`
    : `${label}${topk?.length ? `, ${percent(topk[0][1])}` : ""}`;

/** What went wrong, what to do, and whether asking again can help. */
export function describeProblem({ code = 0, status = "", limitMb = null }) {
  const kind = KINDS[status] ?? KINDS[code] ?? (code >= 500 ? KINDS.failed : KINDS.odd);
  return kind === KINDS.body && limitMb
    ? { ...kind, title: `This file is larger than this server takes (${limitMb} MB).` }
    : kind;
}

const body = {
  title: "This file is larger than this server takes.",
  advice: "Save it smaller, then choose it again.",
};
const unreadable = {
  title: `This file is not a picture I can read (${FORMATS}).`,
  advice: "Open it in a picture program, save it as JPEG or PNG, then choose it again.",
};
const KINDS = {
  unreadable,
  400: unreadable,
  415: unreadable,
  body,
  413: body,
  too_large: {
    title: "This picture is larger than this server takes.",
    advice: "Save it smaller, then choose it again.",
  },
  none_readable: {
    title: "None of these files is a picture I can read.",
    advice: `Choose photos of one of these kinds: ${FORMATS}.`,
  },
  non_finite: {
    title: "The network gave no number for this photo.",
    advice: "That is a fault of the network. Other photos may work; a training in fp32 helps.",
  },
  refused: {
    title: "The server refuses questions from this page.",
    advice: "Open the page under the address that the server printed.",
  },
  408: { title: "Sending the photo took too long.", advice: "", canRetry: true },
  422: {
    title: "The server did not understand the question.",
    advice: "The page may be older than the server: load it again.",
  },
  429: { title: "The server is busy.", advice: "", canRetry: true },
  503: { title: "The server is busy.", advice: "It was asked several times.", canRetry: true },
  504: { title: "Answering took too long.", advice: "", canRetry: true },
  offline: {
    title: "The server cannot be reached.",
    advice: "Is it still running? Start it with python -m tools.serve.",
    canRetry: true,
  },
  lost: {
    title: "This file cannot be read any more.",
    advice: "It was moved or changed since it was chosen: choose it again.",
  },
  failed: { title: "Something failed on the server.", advice: "Its log says what.", canRetry: true },
  cancelled: { title: "Cancelled.", advice: "", canRetry: true },
  odd: { title: "The server gave an answer that I do not understand.", advice: "", canRetry: true },
};
