// An answer of the networks as elements. Labels come from files: they only ever become text nodes.

import { count, describeProblem, headName, percent, size } from "./words.js";

const NUM_SHOWN = 3; // the others are folded away
const MAX_MAY_BE = 12;

/** Make an element: classes behind dots, properties, then children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.className = classes.join(" ");
  Object.assign(element, properties);
  element.append(...children.filter(Boolean));
  return element;
}

export const bdi = (text) => make("bdi", {}, String(text));

/** Lay an answer out; `why(head, label)` makes a button; `isFolded` folds attributes away. */
export function answerView(answer, why = () => null, isFolded = false) {
  const { species, attributes } = answer;
  const heads = Object.entries(attributes);
  const views = heads.map(([head, entry]) => headView(head, entry, why(head, entry.label)));
  const grid = heads.length > 0 && make("div.attributes", {}, ...views);
  const names = heads.map(([head]) => headName(head)).join(", ");
  return [
    headView("species", species, why("species", species.label)),
    answer.message && make("p.note.bad", {}, make("b", {}, describeProblem(answer).title), " ",
      bdi(answer.message)),
    answer.status === "no_specialist" && make("p.note.quiet", {},
      "There is no specialist for ", bdi(species.label),
      " on this server, so breed, colours and gender were not predicted."),
    grid && isFolded ? make("details.rest.folded", {}, make("summary", {}, names), grid) : grid,
    grid && species.sure === false && make("p.small.foot", {},
      `${names}: valid only if the species is right (`, bdi(species.label), ")."),
    [species, ...Object.values(attributes)].some(({ sure }) => sure == null) && make(
      "p.small.foot", {}, "Not every network here was calibrated, so an answer can be unsure " +
      "without saying so."),
  ];
}

function headView(head, entry, whyButton) {
  const isUnsure = entry.sure === false;
  const answer = make("p.answer", {}, bdi(entry.label), isUnsure && " ",
    isUnsure && make("span.guess.doubt", {}, "unsure"));
  const mayBe = entry.may_be?.length > (isUnsure ? 0 : 1) && mayBeView(entry.may_be);
  return make(`section.head.${head === "species" ? "first" : "other"}`, {},
    make("div.line", {}, make("h4", {}, headName(head)), whyButton),
    answer, barsView(`Probabilities, ${headName(head)}`, entry.topk, isUnsure), mayBe);
}

/** Lay out labels and values as bars; `picture(place)` stands before a label. */
export function barsView(title, topk, isUnsure, format = percent, picture = () => null) {
  const rows = topk.map(([label, value], place) => {
    const bar = make("i");
    bar.style.width = `${Math.max(value, 0) * 100}%`;
    return make("li", {}, make("span.label", {}, picture(place), bdi(label)),
      make("span.bar", { ariaHidden: "true" }, bar), make("span.value", {}, format(value)));
  });
  const kind = isUnsure ? "ol.bars.pale" : "ol.bars";
  const rest = rows.slice(NUM_SHOWN);
  return make("div", {},
    make(kind, { ariaLabel: title }, ...rows.slice(0, NUM_SHOWN)),
    rest.length > 0 && make("details.rest", {},
      make("summary", {}, `${rest.length} more`),
      make("ol.bars.pale", { start: NUM_SHOWN + 1 }, ...rest)));
}

function mayBeView(labels) {
  const shown = labels.slice(0, MAX_MAY_BE).flatMap((label) => [", ", bdi(label)]).slice(1);
  const more = labels.length - MAX_MAY_BE;
  return make("p.small.may-be", {}, "Possible: ", ...shown, more > 0 && ` or ${more} more`,
    ". Such a list holds the true label in 9 of 10 photos.");
}

/** Say that photos of one animal were taken for different species; null where they agree. */
export function disagreementNote(photos) {
  const votes = new Map();
  for (const { answer } of photos) {
    const label = answer?.species?.label;
    if (label) votes.set(label, (votes.get(label) ?? 0) + 1);
  }
  if (votes.size < 2) return null;
  const parts = [...votes].flatMap(([label, number]) => [", ", `${number} × `, bdi(label)]);
  return make("p.note", {}, make("b", {}, "The photos do not agree. "), "Alone they would be: ",
    ...parts.slice(1), ". Do all of them show one animal?");
}

/** Say on what the networks were trained, as far as their files know it. */
export function trainingWords({ stage1: { made_up: isMadeUp, num_animals: number } = {} }) {
  if (!number) return "";
  const trained = `Trained on ${isMadeUp ? "drawings" : "photos"} of ${count(number, "animal")}`;
  return isMadeUp ? `${trained}: answers to real photos mean little.` : `${trained}.`;
}

/** Lay the model card out. */
export function cardView(card) {
  if (!card) {
    return [make("p.note.quiet", {}, "The server sent no model card. Is it running?")];
  }
  const { limits = {}, stage1 = {}, specialists = {}, identity } = card;
  const rows = [
    ["Engine", `${card.engine}, ${card.precision}`],
    ["Species", (stage1.heads?.species ?? []).join(", ")],
    ["No specialist", (card.no_specialist ?? []).join(", ")],
    ["Formats", (card.formats ?? []).join(", ")],
    ["Limits", `${count(limits.max_photos, "photo")} of one animal, ` +
      `${size(limits.max_body_mb * 1e6)} in one upload`],
  ].filter(([, text]) => text);
  const all = Object.entries({ "stage 1": stage1, ...specialists, ...(identity && { identity }) });
  return [
    make("dl.facts", {}, ...rows.map(([name, text]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, bdi(text))))),
    make("ul.networks", {}, ...all.map(([name, { heads = {}, sha256 = "" }]) =>
      make("li", {}, make("b", {}, bdi(name)), " ", bdi(Object.entries(heads)
        .map(([head, labels]) => `${headName(head).toLowerCase()} (${labels.length})`).join(", ")),
      make("code", { title: `sha256 ${sha256}` }, `sha256 ${sha256.slice(0, 12)}…`)))),
  ];
}
