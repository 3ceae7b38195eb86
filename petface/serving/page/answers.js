// An answer of the networks as elements. Labels come from files: they only ever become text nodes.

import { count, describeProblem, headName, percent } from "./words.js";

const NUM_SHOWN = 3; // the others are folded away
const MAX_MAY_BE = 12;

/** Make an element: classes behind dots, properties, then children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child || child === ""));
  return element;
}

export const bdi = (text) => make("bdi", {}, String(text));

/** Lay an answer out; `why(head, label)` gives a button or null, `isFolded` folds attributes away. */
export function answerView(answer, why = () => null, isFolded = false) {
  const { species, attributes = {} } = answer;
  const heads = Object.entries(attributes ?? {});
  const views = heads.map(([head, entry]) => headView(head, entry, why(head, entry.label)));
  const names = heads.map(([head]) => headName(head)).join(", ");
  return [
    species.is_pet === false && strangerNote(),
    answer.message && make("p.note.bad", {}, make("b", {}, describeProblem(answer).title), " ",
      bdi(answer.message)),
    headView("species", species, why("species", species.label)),
    answer.status === "no_specialist" && specialistNote(species.label),
    heads.length > 0 && species.sure === false && make("p.small.given", {},
      "What follows holds only if it is: ", bdi(species.label), "."),
    heads.length > 0 && (isFolded
      ? make("details.rest.folded", {}, make("summary", {}, names), make("div.attributes", {}, ...views))
      : make("div.attributes", {}, ...views)),
    footnote([species, ...heads.map(([, entry]) => entry)]),
  ].filter(Boolean);
}

function headView(head, entry, whyButton) {
  const isUnsure = entry.sure === false;
  return make(`section.head.${head === "species" ? "first" : "other"}`, {},
    make("div.line", {}, make("h4", {}, headName(head)), whyButton),
    isUnsure
      ? make("p.answer.doubt", {}, make("span", {}, "unsure"), " ",
        make("span.guess", {}, "best guess: ", bdi(entry.label)))
      : make("p.answer", {}, bdi(entry.label)),
    barsView(headName(head), entry.topk ?? [], isUnsure),
    (entry.may_be?.length > 1 || (entry.may_be?.length && isUnsure)) && mayBeView(entry.may_be));
}

function barsView(name, topk, isUnsure) {
  const rows = topk.map(([label, probability]) => {
    const bar = make("i", {});
    bar.style.width = `${Math.max(0, Math.min(1, probability)) * 100}%`;
    return make("li", {}, make("span.label", {}, bdi(label)),
      make("span.bar", { ariaHidden: "true" }, bar), make("span.value", {}, percent(probability)));
  });
  const kind = isUnsure ? "ol.bars.pale" : "ol.bars";
  const rest = rows.slice(NUM_SHOWN);
  return make("div", {},
    make(kind, { ariaLabel: `Probabilities, ${name}` }, ...rows.slice(0, NUM_SHOWN)),
    rest.length > 0 && make("details.rest", {},
      make("summary", {}, `${rest.length} more`),
      make("ol.bars.pale", { start: NUM_SHOWN + 1 }, ...rest)));
}

function mayBeView(labels) {
  const shown = labels.slice(0, MAX_MAY_BE).flatMap((label) => [", ", bdi(label)]).slice(1);
  const more = labels.length - MAX_MAY_BE;
  return make("p.small.may-be", {}, "It may be ", ...shown, more > 0 && ` or ${more} more`,
    ". Lists like this hold the true one in 9 of 10 photos.");
}

const strangerNote = () =>
  make("p.note", {}, make("b", {}, "Does not look like any of the known species. "),
    "Take the answer with care. This is advice only: about 1 in 20 photos of real pets gets it too, " +
    "and a stranger can pass without it.");

const specialistNote = (label) =>
  make("p.note.quiet", {}, "There is no specialist for ", bdi(label),
    " on this server, so breed, colours and gender were not asked.");

function footnote(entries) {
  const lines = [];
  if (entries.some(({ sure }) => sure === null || sure === undefined)) {
    lines.push("Not every answer here was calibrated: where it was not, nothing says when to " +
      "call it unsure.");
  }
  const nameless = entries.filter(({ vocabulary }) => vocabulary && vocabulary !== "checkpoint");
  if (nameless.length) {
    lines.push(`The names of ${count(nameless.length, "attribute")} are not from the network's ` +
      `file (${[...new Set(nameless.map(({ vocabulary }) => vocabulary))].join(", ")}).`);
  }
  return lines.length > 0 && make("p.small.foot", {}, lines.join(" "));
}

/** Say that photos of one animal were taken for different species; null where they agree. */
export function disagreementNote(answers) {
  const votes = new Map();
  for (const { species } of answers) {
    if (species) votes.set(species.label, (votes.get(species.label) ?? 0) + 1);
  }
  if (votes.size < 2) return null;
  const parts = [...votes].flatMap(([label, number]) => [`, ${number} × `, bdi(label)]);
  return make("p.note", {}, make("b", {}, "The photos do not agree. "), "Alone they would be: ",
    parts[0].slice(2), ...parts.slice(1), ". Do all of them show one animal?");
}
