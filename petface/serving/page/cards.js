// A card: photos on one side, what is known about them on the other.

import { answerView, bdi, disagreementNote, make } from "./answers.js";
import { count, describeProblem, headName, size } from "./words.js";

/** Make the card of one photo. `actions`: remove, retry, why, and what it wants to know. */
export function photoCard(photo, actions) {
  const picture = pictureOf(photo);
  const frame = make("div.frame", {}, picture);
  const caption = make("span.pale", { role: "status" }, size(photo.file.size));
  const body = make("div.body");
  const remove = make("button.remove", {
    type: "button", title: "Remove", ariaLabel: `Remove ${photo.name}`, onclick: actions.remove,
  }, "×");
  const title = make("figcaption", {}, make("h3", {}, bdi(photo.name)), caption);
  const node = make("article.card", { tabIndex: -1, ariaLabel: photo.name },
    make("figure.media", {}, frame, title), body, remove);
  const whyButton = (head, label) => {
    if (!actions.canExplain()) return null;
    const button = make("button.whybutton", {
      type: "button", ariaPressed: "false", onclick: () => actions.why(head, label),
      ariaLabel: `Why this answer? ${headName(head)}, ${label}`,
    }, "Why this answer?");
    button.dataset.head = head;
    return button;
  };
  return {
    node,
    /** Show what is known now. */
    show() {
      const { subject, parts } = actions.asked(whyButton);
      fill(node, body, subject, parts || stateView(subject, actions));
      photo.shown = "";
      this.showWhy("", "", null);
    },
    /** Show why in the photo's place, or words; the photo where neither. */
    showWhy(head, label, url, words = "") {
      for (const old of frame.querySelectorAll(".why")) old.remove();
      if (url) frame.append(whyPicture(url, label, actions.isStretched(head) && picture));
      frame.classList.toggle("covered", Boolean(url));
      caption.replaceChildren(...(url
        ? ["Red: raised ", make("b", {}, bdi(label)), " most; blue: least."]
        : [words || size(photo.file.size)]));
      for (const button of body.querySelectorAll(".whybutton")) {
        button.ariaPressed = String(Boolean(url || words) && button.dataset.head === head);
      }
    },
  };
}

/** The picture has the photo's shape where the network sees the whole photo, stretched. */
function whyPicture(url, label, stretched) {
  const image = make("img.why", { src: url, alt: `Places of the photo that raised ${label}` });
  if (stretched?.naturalWidth) {
    image.style.setProperty("--ratio", stretched.naturalWidth / stretched.naturalHeight);
  }
  return image;
}

/** Make the card of all photos of one animal. */
export function animalCard(animal, photos, actions) {
  const media = make("div.media");
  const body = make("div.body");
  const node = make("article.card.together", { tabIndex: -1, ariaLabel: animal.name }, media, body);
  return {
    node,
    show() {
      const used = animal.answer?.num_photos ?? photos.length;
      const note = used === photos.length ? `from ${count(used, "photo")}`
        : `from ${used} of ${count(photos.length, "photo")}; the others could not be used`;
      media.replaceChildren(
        make("div.strip", {}, ...photos.map((photo) => pictureOf(photo, true))),
        make("h3", {}, animal.name), make("p.pale", {}, note));
      fill(node, body, animal, animal.answer?.species
        ? [...answerView(animal.answer), disagreementNote(photos)] : stateView(animal, actions));
    },
  };
}

function fill(node, body, subject, parts) {
  const hadFocus = body.contains(document.activeElement);
  node.ariaBusy = String(subject.state === "running" || subject.state === "waiting");
  body.replaceChildren(...parts.filter(Boolean));
  if (hadFocus) node.focus({ preventScroll: true });
}

export function pictureOf(photo, isSmall = false) {
  const image = make("img", { src: photo.url, alt: isSmall ? "" : `Photo ${photo.name}` });
  const blank = make("div.blank", {}, isSmall ? "–" : "no preview");
  image.addEventListener("error", () => image.replaceWith(blank), { once: true });
  return image;
}

function stateView(subject, actions) {
  if (subject.state !== "done") {
    if (subject.state === "new") return [make("p.pale", {}, "Not predicted on its own yet.")];
    const text = subject.wait > 0 ? `The server is busy: trying again in ${subject.wait} s.`
      : subject.state === "running" ? "Predicting …" : "Waiting for its turn …";
    return [make("p.busy", {}, make("i.dot", { ariaHidden: "true" }), text)];
  }
  const problem = subject.problem ?? subject.answer;
  const { title, advice, canRetry } = describeProblem(problem);
  return [
    make("p.note.bad", {}, make("b", {}, title), advice && ` ${advice}`),
    problem.message && make("p.small", {}, "The server said: ", bdi(problem.message)),
    canRetry && make("button.button", { type: "button", onclick: actions.retry }, "Try again"),
  ];
}
