// Who is this? Embeddings of known animals and of queries are compared here, in the page's memory.

import { barsView, bdi, make } from "./answers.js";
import { pictureOf } from "./cards.js";
import { percent } from "./words.js";

const NUM_RANKED = 10;
const cosine = (value) => value.toFixed(2);

/** The name of a file's folder, "" where it came without one. */
export const folderOf = (file) => file.folder ?? file.webkitRelativePath.split("/").at(-2) ?? "";

/** List the files of what was dropped, also those in folders. */
export async function droppedFiles({ items }) {
  const found = [...items].map((item) => { // all at once, or the browser forgets them
    const entry = item.webkitGetAsEntry();
    return entry ? filesOf(entry) : item.getAsFile() ?? [];
  });
  return (await Promise.all(found)).flat(Infinity);
}

async function filesOf(entry, folder = "") {
  const call = (of, name) => new Promise((resolve, reject) => { of[name](resolve, reject); });
  if (entry.isFile) return Object.assign(await call(entry, "file"), { folder });
  const reader = entry.createReader();
  const found = [];
  for (let some = [0]; some.length; found.push(...some)) some = await call(reader, "readEntries");
  return Promise.all(found.map((one) => filesOf(one, entry.name)));
}

/** Rank animals by the similarity of their photos' mean: [name, similarity, photo], best first. */
function rank(query, photos) {
  const known = photos.filter((photo) => photo.known && photo.query.answer);
  return [...Map.groupBy(known, (photo) => photo.known)].map(([name, own]) => {
    const embeddings = own.map((photo) => photo.query.answer.photos[0].embedding);
    const mean = query.map((_, place) => embeddings.reduce((sum, one) => sum + one[place], 0));
    const dot = query.reduce((sum, value, place) => sum + value * mean[place], 0);
    return [name, dot / (Math.hypot(...mean) || 1), own[0]];
  }).sort((one, other) => other[1] - one[1]);
}

/** Lay out which of the known animals a query shows. */
export function matchView({ photos: [query], threshold, false_match_rate: rate }, photos) {
  const ranking = rank(query.embedding, photos).slice(0, NUM_RANKED);
  if (!ranking.length) {
    return [make("p.note.quiet", {}, "The gallery is empty: type a name, then choose its photos.")];
  }
  const [[name, similarity]] = ranking;
  const isUnknown = threshold != null && similarity < threshold;
  const bars = barsView("Similarity to known animals", ranking, isUnknown, cosine,
    (place) => pictureOf(ranking[place][2], true));
  bars.style.setProperty("--threshold", threshold ?? -1);
  const rule = threshold == null ? "This network has no threshold: nobody is unknown to it."
    : `Unknown below ${cosine(threshold)}: ${percent(rate)} of pairs of two animals reach it.`;
  return [make("section.first.match", {}, make("div.line", {}, make("h4", {}, "Most similar")),
    make("p.answer", {}, isUnknown ? make("span.doubt", {}, "unknown") : bdi(name)), bars),
  make("p.small.foot", {}, rule)];
}
