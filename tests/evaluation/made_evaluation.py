"""An evaluation with odd labels, small heads and every kind of missing answer, made photo by photo.

Beside the files stands what made them: each photo as a dictionary with the cells of its row as
text, and under "p" and "raw" the probabilities of every class, per head that was answered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from petface import files
from petface.evaluation import details as kept
from petface.taxonomy import FEATURES

Photo = dict[str, Any]
LABELS = ["Bulldog, Olde mix", "'Apricot", 'so-called "blue"', "NA", "01", "1", "1.0", "=grey", "ü"]
# species -> classes of each head of its specialist, not in the order of their names; labels of the
# annotations that are no class are wrong whatever is answered. "owl, barn" is named right in
# training photos only
CLASSES: dict[str, dict[str, list[str]]] = {
    "cat": {"breed": LABELS, "color1": LABELS[:8], "gender": LABELS[:2]},
    "dog": {"breed": LABELS[2:8]},
    "'ibex": {},  # no specialist
    "owl, barn": {"gender": LABELS[:5]},
    "ünicorn": {"color": LABELS[:4], "color1": LABELS[:7], "color2": LABELS},
}
SPECIES = ["ünicorn", "cat", "'ibex", "owl, barn", "dog"]  # the order of stage 1
FITTED: dict[str, dict[str, Any]] = {
    "species": {"temperature": 1.5, "threshold": 0.0, "conformal_quantile": 0.4},
    "breed": {"temperature": 0.5, "threshold": 0.7, "conformal_quantile": 0.9},
    "color": {"temperature": 2.0, "threshold": None, "conformal_quantile": None},
    "color1": {"temperature": 1.2, "threshold": 0.5, "conformal_quantile": 0.97},
    "gender": {"temperature": 3.0, "threshold": None, "conformal_quantile": 0.7},
}


def fitted(head, species):
    """What was fitted; nothing for color2, other numbers for the dog's breeds."""
    if species == "dog":
        return {"temperature": 0.8, "threshold": None, "conformal_quantile": 0.5,
                "wanted_accuracy": 0.0, "conformal_alpha": 0.2}  # fmt: skip
    return FITTED.get(head, {})


def make_evaluation(folder, seed=3):
    """Write the files into `folder`; give what every photo was."""
    draw, photos = np.random.default_rng(seed), []
    details: list[np.ndarray] = []
    for species, size in zip(CLASSES, (40, 25, 10, 15, 30), strict=True):
        for number in range(size):
            truth = {
                feature: str(draw.choice(LABELS))
                for feature in FEATURES
                if feature != "color2" or species != "cat"  # cat's color2: never known
                if draw.random() < 0.7
            }
            for _ in range(draw.integers(1, 12 if number % 7 == 0 else 6)):
                photo, entry = make_photo(draw, species, number, truth)
                photos.append(photo)
                details.append(entry)
    rows = [[photo[column] for column in kept.PER_IMAGE_COLUMNS] for photo in photos]
    files.write_csv(folder / kept.PER_IMAGE, kept.PER_IMAGE_COLUMNS, rows)
    np.save(folder / kept.DETAILS_FILE, np.concatenate(details))
    write_models(folder)
    return photos


def write_models(folder):
    models = {
        "stage1": {"heads": {"species": SPECIES}, "calibration": {"species": FITTED["species"]}},
        "specialists": {
            name: {"heads": heads, "calibration": {head: fitted(head, name) for head in heads}}
            for name, heads in CLASSES.items()
            if heads
        },
    }
    files.write_json(folder / kept.MODELS, models)


def make_photo(draw, species, number, truth):
    """One image: sometimes unreadable, sometimes unanswered, the species right three in four."""
    photo: Photo = dict.fromkeys(kept.PER_IMAGE_COLUMNS, "") | {"p": {}, "raw": {}}
    details = kept.empty_details(1)
    split = ("train", "train", "val", "test", "test")[number % 5]
    photo |= {"image": "x\n,.png", "species": species, "record": f"{number:06d}", "split": split}
    photo |= {f"{feature}_true": label for feature, label in truth.items()}
    fate = draw.random()
    if fate < 0.05:
        return photo | {"status": "unreadable"}, details
    if fate < 0.08:
        return photo | {"status": "non_finite"}, details
    is_right = draw.random() < 0.75 and (species != "owl, barn" or split == "train")
    answer(draw, photo, details, "species", species, SPECIES, is_right)
    if photo["species_pred"] != species:
        return photo | {"status": "ok"}, details
    if not CLASSES[species]:
        return photo | {"status": "no_specialist"}, details
    if fate < 0.1:  # the specialist's answer was not finite
        return photo | {"status": "non_finite"}, details
    for head, names in CLASSES[species].items():
        answer(draw, photo, details, head, truth.get(head, ""), names, draw.random() < 0.5)
    return photo | {"status": "ok"}, details


def answer(draw, photo, details, head, true, names, is_helped):
    """Draw coarse logits, so that sums and ranks have ties; `is_helped` lifts the truth on top."""
    z = draw.integers(-4, 5, len(names)) / 2.0
    if true in names:
        k = names.index(true)
        z[k] = z.max() + 0.5 if is_helped else z.min()
        if head == "species" and not is_helped:
            z[k] -= 1.0
    temperature = fitted(head, photo["species"]).get("temperature", 1.0)
    details[head] = kept.describe_answers(z[None], kept.class_numbers([true], names), temperature)
    for name, t in (("p", temperature), ("raw", 1.0)):
        odds = [float(np.exp(v / t)) for v in z]
        photo[name][head] = [v / sum(odds) for v in odds]
    best = max(range(len(names)), key=lambda k: (z[k], -k))
    photo |= {f"{head}_pred": names[best], f"{head}_prob": f"{photo['p'][head][best]:.6f}"}
    photo[f"{head}_correct"] = str(int(names[best] == true)) if true else ""
