"""A made-up evaluation as files: two species, several photos a record, known answers."""

import json

import numpy as np

from petface import files
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    class_numbers,
    describe_answers,
    empty_details,
    read_evaluation,
)
from petface.taxonomy import FEATURES

SPECIES = ("cat", "dog")
BREEDS = {"cat": ("=Persian", "Siamese"), "dog": ("Beagle", "Pug", "Poodle")}
SHARES = {"train": 0.5, "val": 0.1, "test": 0.4}


def make_evaluation(folder, num_records=120, seed=0):
    """Write an evaluation whose answers are drawn; give it read back, and its rows as dictionaries.

    Some photos are unreadable, some labels unknown, and one label is none of the network's classes.
    """
    draw = np.random.default_rng(seed)
    rows, kept = [], []
    for species in SPECIES:
        for number in range(num_records // 2):
            split = str(draw.choice(list(SHARES), p=list(SHARES.values())))
            breed = str(draw.choice([*BREEDS[species], "", "Unheard"], p=_shares(species)))
            for photo in range(int(draw.integers(1, 9))):
                image = f"{species}/{number:06d}/{photo:02d}.png"
                row = dict.fromkeys(PER_IMAGE_COLUMNS, "")
                row |= {"image": image, "species": species, "record": f"{number:06d}"}
                row |= {"split": split, "status": "ok", "breed_true": breed}
                details = np.empty(1, DETAILS)
                for head in ("species", *FEATURES):
                    details[head] = empty_details(1)
                if draw.random() < 0.05:
                    row["status"] = "unreadable"
                else:
                    details["species"] = _answer(draw, row, "species", species, SPECIES)
                    if row["species_pred"] == species:
                        names = BREEDS[species]
                        details["breed"] = _answer(draw, row, "breed", breed, names)
                rows.append(row)
                kept.append(details)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_csv(folder / PER_IMAGE, PER_IMAGE_COLUMNS, [row.values() for row in rows])
    np.save(folder / DETAILS_FILE, np.concatenate(kept))
    specialists = {s: {"path": "", "sha256": "", "heads": {"breed": BREEDS[s]}} for s in SPECIES}
    stage1 = {"path": "", "sha256": "", "heads": {"species": SPECIES}}
    models = {"stage1": stage1, "specialists": specialists, "images_root": str(folder)}
    (folder / MODELS).write_text(json.dumps(models))
    return read_evaluation(folder), rows


def _shares(species):
    known = 0.8 / len(BREEDS[species])
    return [known] * len(BREEDS[species]) + [0.15, 0.05]


def _answer(draw, row, head, true, names):
    logits = draw.normal(0, 1.5, (1, len(names)))
    numbers = class_numbers([true], names)
    if numbers[0] >= 0:
        logits[0, numbers[0]] += 1.0
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    row[f"{head}_pred"] = names[int(p.argmax())]
    row[f"{head}_prob"] = round(float(p.max()), 6)
    row[f"{head}_correct"] = int(row[f"{head}_pred"] == true) if true else ""
    return describe_answers(logits, numbers, 1.0)[0]
