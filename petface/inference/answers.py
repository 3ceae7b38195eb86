"""What is answered about a single photo, and how it is laid out for machines and a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

UNSURE = "unsure"


@dataclass(frozen=True)
class Stage1Prediction:
    """The most probable species, and the `topk` best as (species, probability) in falling order.

    `sure` tells whether answers of this confidence are right as often as was wanted in training;
    None where the checkpoint was not calibrated. `is_known` is False for a photo that looks like
    none of the training photos (1 in 20 real pets does), None where the checkpoint has no guard.
    It is advice: how many strangers pass for pets stands in the run's final.json under "guard".
    """

    label: str
    topk: list[tuple[str, float]]
    sure: bool | None = None
    is_known: bool | None = None


@dataclass(frozen=True)
class HeadPrediction:
    """The most probable label of one head; `vocabulary` says where the label names came from.

    `sure` as for the species. `may_be`, of a calibrated breed, holds the true one in 9 of 10
    photos, most probable first.
    """

    label: str
    topk: list[tuple[str, float]]
    vocabulary: str = "checkpoint"
    sure: bool | None = None
    may_be: list[str] | None = None


def lay_out(prediction: Stage1Prediction | HeadPrediction) -> dict[str, Any]:
    """Turn a prediction into a dictionary ready for JSON.

    `answer` is the label, or "unsure" where the network says that it is; `may_be` is left out
    where it is None. What a species knows as `is_known` is called `is_pet`.
    """
    entry = {name: v for name, v in asdict(prediction).items() if name != "may_be" or v is not None}
    if "is_known" in entry:
        entry["is_pet"] = entry.pop("is_known")
    return {**entry, "answer": UNSURE if prediction.sure is False else prediction.label}


def readable(answer: dict[str, Any]) -> str:
    """Lay one answer of `TwoStageInference.infer` out for a terminal."""
    if "message" in answer:
        return f"{answer['image']}: {answer['status']} ({answer['message']})"
    lines = [str(answer["image"])]
    for name, entry in [("species", answer["species"]), *answer["attributes"].items()]:
        best, *others = [f"{label} {p * 100:.1f} %" for label, p in entry["topk"]]
        if entry["sure"] is False:
            best += f" ({UNSURE})"
        if entry.get("is_pet") is False:
            best += " (does not look like any of the known species)"
        lines.append(f"  {name:8s} {best}" + (f"   ({', '.join(others)})" if others else ""))
    if answer["status"] == "no_specialist":
        lines.append("  no specialist for this species: attributes are not asked")
    return "\n".join(lines)
