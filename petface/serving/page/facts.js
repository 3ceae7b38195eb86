// The facts of the model card, for the footer and for the rules of the page.

import { bdi, make } from "./answers.js";
import { headName } from "./words.js";

const MEGABYTE = 1e6;

/** What the page needs to know, whatever the card leaves out. */
export function rulesOf(card) {
  const { max_photos: maxPhotos, max_body_mb: maxBodyMb } = card?.limits ?? {};
  return {
    wanted: wantedOf(card?.stage1?.calibration?.species?.wanted_accuracy),
    canExplain: card?.can_explain === true,
    maxPhotos: maxPhotos > 0 ? maxPhotos : Infinity,
    maxBodyMb: maxBodyMb > 0 ? maxBodyMb : null,
    maxBodyBytes: maxBodyMb > 0 ? maxBodyMb * MEGABYTE : Infinity,
    /** Whether the network sees the whole photo, so that its picture has the photo's shape. */
    isStretched: (species, head) =>
      (head === "species" ? card?.stage1 : card?.specialists?.[species])?.preprocessing?.resize ===
      "stretch",
  };
}

/** Lay the model card out. */
export function factsView(card) {
  if (!card) {
    return [make("p.note.quiet", {}, "The server gave no model card. Is it running?")];
  }
  const species = listOf(card.stage1?.classes ?? card.stage1?.heads?.species ?? card.species);
  const specialists = Object.entries(card.specialists ?? {});
  const rows = [
    ["Arithmetic", [card.engine, card.precision, card.device].filter(isText).join(", ")],
    ["Species", species.join(", ")],
    ["No specialist", listOf(card.no_specialist).join(", ")],
    ["Explanations", card.can_explain ? "yes" : "no, these networks give none"],
    ["Photos of an animal", card.limits?.max_photos ? `at most ${card.limits.max_photos}` : ""],
    ["Largest upload", card.limits?.max_body_mb ? `${card.limits.max_body_mb} MB` : ""],
  ].filter(([, text]) => text);
  const networks = [["stage 1", card.stage1 ?? {}], ...specialists];
  return [
    make("dl.facts", {}, ...rows.map(([name, text]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, bdi(text))))),
    make("ul.networks", {}, ...networks.map(([name, facts]) => networkView(name, facts ?? {}))),
  ];
}

const wantedOf = (share) => (share > 0 && share < 1 ? ` (wanted: ${Math.round(share * 100)} %)` : "");
const isText = (value) => typeof value === "string" && value !== "";
const listOf = (value) => (Array.isArray(value) ? value : []);

function networkView(name, facts) {
  const heads = facts.heads && !Array.isArray(facts.heads) ? Object.entries(facts.heads) : [];
  const about = heads.map(([head, labels]) =>
    `${headName(head).toLowerCase()} (${Array.isArray(labels) ? labels.length : labels})`);
  if (facts.preprocessing?.size_px) about.unshift(`${facts.preprocessing.size_px} px`);
  const sum = facts.sha256 ?? facts.checksum;
  return make("li", {}, make("b", {}, bdi(name)), " ", bdi(about.join(", ")),
    isText(sum) && make("code", { title: `sha256 ${sum}` }, `sha256 ${sum.slice(0, 12)}…`));
}
