// A card: photos on one side, what is known about them on the other.

import { answerView, bdi, disagreementNote, make } from "./answers.js";
import { count, describeProblem, headName, size } from "./words.js";

/** Make the card of one photo. `actions`: remove, retry, send, why, and what to ask the page. */
export function photoCard(photo, actions) {
  const picture = pictureOf(photo);
  const frame = make("div.frame", {}, picture);
  const caption = make("span.pale", { role: "status" }, size(photo.file.size));
  const body = make("div.body", {});
  const node = make("article.card", { tabIndex: -1 },
    make("figure.media", {}, frame, make("figcaption", {}, make("h3", {}, bdi(photo.name)), caption)),
    body,
    make("button.remove", {
      type: "button", title: "Remove", ariaLabel: `Remove ${photo.name}`, onclick: actions.remove,
    }, "×"));
  node.ariaLabel = photo.name;
  const why = (head, label) => (actions.canExplain() ? whyButton(head, label, actions.why) : null);
  return {
    node,
    /** Show what is known now. */
    show() {
      fill(node, body, photo, photo.answer?.species
        ? answerView(photo.answer, why, actions.isFolded()) : stateView(photo, actions));
      photo.shown = null;
      this.showWhy("", "", null);
    },
    /** Show what speaks for an answer in the photo's place, or words; the photo where neither. */
    showWhy(head, label, url, words = null) {
      for (const old of frame.querySelectorAll(".why")) old.remove();
      if (url) frame.append(whyPicture(url, label, actions.isStretched(head) && picture));
      frame.classList.toggle("covered", Boolean(url));
      caption.replaceChildren(...(url
        ? ["Red speaks most for ", make("b", {}, bdi(label)), ", blue least."]
        : [words ?? size(photo.file.size)]));
      for (const button of body.querySelectorAll(".whybutton")) {
        button.ariaPressed = String(Boolean(url ?? words) && button.dataset.head === head);
      }
    },
  };
}

/** The picture has the photo's shape where the network sees the whole photo, stretched. */
function whyPicture(url, label, stretched) {
  const image = make("img.why", { src: url, alt: `Places of the photo that speak for ${label}` });
  if (stretched?.naturalWidth) {
    image.style.setProperty("--ratio", stretched.naturalWidth / stretched.naturalHeight);
  }
  return image;
}

/** Make the card of all photos of one animal. `animal`: answer, problem, state; `photos` its own. */
export function animalCard(animal, photos, actions) {
  const media = make("div.media", {});
  const body = make("div.body", {});
  const node = make("article.card.together", { tabIndex: -1, ariaLabel: "All photos together" },
    media, body);
  return {
    node,
    show() {
      const used = animal.answer?.num_photos;
      const note = used === undefined ? count(photos.length, "photo")
        : used === photos.length ? `from ${count(used, "photo")}`
          : `from ${used} of ${count(photos.length, "photo")}; the others could not be used`;
      media.replaceChildren(
        make("div.strip", {}, ...photos.map((photo) => pictureOf(photo, true))),
        make("h3", {}, "All photos together"), make("p.pale", {}, note));
      const parts = animal.answer?.species
        ? [disagreementNote(photos.map(({ answer }) => answer ?? {})), ...answerView(animal.answer)]
        : stateView(animal, actions);
      fill(node, body, animal, parts);
    },
  };
}

function fill(node, body, subject, parts) {
  const hadFocus = body.contains(document.activeElement);
  node.ariaBusy = String(subject.state === "asking" || subject.state === "waiting");
  body.replaceChildren(...parts.filter(Boolean));
  if (hadFocus) node.focus({ preventScroll: true });
}

function pictureOf(photo, isSmall = false) {
  const image = make("img", { src: photo.url, alt: isSmall ? "" : `Photo ${photo.name}` });
  image.decoding = "async";
  const blank = make("div.blank", {}, isSmall ? "–" : "no preview");
  image.addEventListener("error", () => image.replaceWith(blank), { once: true });
  return image;
}

function stateView(subject, actions) {
  if (subject.state === "held") {
    return [make("p.note", {}, subject.held),
      subject.canSend !== false && make("button.button", { type: "button", onclick: actions.send },
        "Send all the same")];
  }
  if (subject.state === "done") return problemView(subject, actions);
  const text = subject.wait > 0 ? `The server is busy: trying again in ${subject.wait} s.`
    : { asking: "Looking …", waiting: "Waiting for its turn …" }[subject.state];
  return [text ? make("p.busy", {}, make("i.dot", { ariaHidden: "true" }), text)
    : make("p.pale", {}, "Not asked on its own yet.")];
}

function problemView(subject, actions) {
  const problem = subject.problem ?? subject.answer;
  const { title, advice, canRetry } = describeProblem(problem);
  const isQuiet = problem.status === "cancelled";
  return [
    make(isQuiet ? "p.note.quiet" : "p.note.bad", {}, make("b", {}, title), advice ? ` ${advice}` : ""),
    problem.message && make("p.small", {}, "The server said: ", bdi(problem.message)),
    canRetry && actions.retry && make("button.button", { type: "button", onclick: actions.retry },
      isQuiet ? "Ask again" : "Try again"),
  ];
}

function whyButton(head, label, onWhy) {
  const button = make("button.whybutton", {
    type: "button", ariaPressed: "false", onclick: () => onWhy(head, label),
    ariaLabel: `What speaks for it: ${headName(head)}, ${label}`,
  }, "What speaks for it");
  button.dataset.head = head;
  return button;
}
