"""The words of the reports, each explained in a sentence or two."""

from __future__ import annotations

from typing import Final

from petface.report.page import text
from petface.report.report_parts import fold

WORDS: Final = {
    "photo, record": (
        "A record is one animal; it has one or more photos. All photos of a record are in the "
        "same part of the split."
    ),
    "train, validation, test": (
        "The networks learned from the train part; the validation part chose the best epoch and "
        "fitted the confidence; nothing was trained or chosen on the test part."
    ),
    "conditional (where the species is right)": (
        "An attribute's share right among the photos whose species was answered right: only then "
        "is a specialist asked."
    ),
    "end to end": (
        "The share right of all photos with a known label; a wrong species counts as a wrong "
        "attribute. This is what a user meets."
    ),
    "95 % interval": (
        "What chance in the choice of animals leaves open; photos of one animal are not counted as "
        "independent. It tells nothing of other kinds of photos."
    ),
    "commonest (majority baseline)": (
        "What always answering the commonest class of the train part reaches. A network that is "
        "no better has learned nothing of use."
    ),
    "balanced accuracy": "The mean recall over classes: rare classes count as much as common ones.",
    "recall, precision, F1": (
        "Recall: the share of a class's photos that are answered with it. Precision: the share of"
        " a class's answers that are right. F1: their harmonic mean. Macro: the mean over "
        "classes."
    ),
    "top 3, top 5": "The share of photos whose truth is among the 3 or 5 best answers.",
    "Cohen's kappa": "Agreement beyond what chance gives: 0 is chance, 1 is perfect.",
    "NLL": "Mean negative log of the probability given to the truth, in nats; less is better.",
    "Brier score": "Mean squared distance of the probabilities from the truth; less is better.",
    "ECE": (
        "Expected calibration error: the mean distance between confidence and share right, over "
        "bins of confidence."
    ),
    "temperature": (
        "The one number by which a network's scores are divided so that its confidence fits the "
        "validation part."
    ),
    "threshold, coverage": (
        "Answers of at least this confidence count as sure; it was chosen on the validation part "
        "so that the wanted share of them is right. Coverage: their share of all."
    ),
    "conformal set": (
        "Several answers that together hold the truth in a wanted share of photos, whatever the "
        "network's faults, if new photos are like those of the validation part."
    ),
    "per record, fused": "All photos of a record vote with the probabilities of their answers.",
    "lost by stage 1, by stage 2": (
        "Points of end-to-end accuracy lost because the species was wrong, or because the "
        "specialist was."
    ),
}


def definitions() -> str:
    """Explain the words, folded away."""
    lines = "".join(
        f"<dt><b>{text(word)}</b></dt><dd>{text(is_)}</dd>" for word, is_ in WORDS.items()
    )
    return fold("Show them", f"<dl>{lines}</dl>")
