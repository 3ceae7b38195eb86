"""Made-up evaluations as files: images with their truth, and networks that answer with luck."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from petface import files
from petface.evaluation.details import (
    DETAILS_FILE,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    class_numbers,
    describe_answers,
    empty_details,
)

Row = dict[str, str]
LABELS = {"breed": ["=Mix", "Manx", "<b>Rex</b>", "NA"], "gender": ["female", "male"]}
HEADS_OF = {"cat": ("breed", "gender"), "dog": ("breed",), "'emu": ()}
SPECIES = list(HEADS_OF)


def make_images(seed: int = 0, num_records: int = 90) -> list[Row]:
    """Images with their truth: 1 to 7 a record, some labels unknown or no class."""
    draw, rows = np.random.default_rng(seed), []
    for number in range(num_records):
        species = SPECIES[number % 7 // 3]
        row = dict.fromkeys(PER_IMAGE_COLUMNS, "") | {"species": species}
        row["breed_true"] = str(draw.choice([*LABELS["breed"] * 3, "", "Unheard"]))
        row["gender_true"] = str(draw.choice([*LABELS["gender"], ""]))
        row |= {"record": f"{number:06d}", "split": ("test", "val", "test", "train")[number % 4]}
        for photo in range(draw.integers(1, 8)):
            status = "unreadable" if draw.random() < 0.03 else "ok"
            image = f"{species}/{number:06d}/=ü,\n{photo}.png"
            rows.append(row | {"image": image, "status": status})
    return rows


def make_evaluation(
    folder: Path, images: list[Row], skill: float, seed: int, data: str = "d1",
    heads_of: dict[str, tuple[str, ...]] = HEADS_OF,
) -> Path:  # fmt: skip
    """Answer the images, the better the more `skill` (0 to 1); a photo is hard or easy for all."""
    draw, luck = np.random.default_rng(seed), np.random.default_rng(99)
    rows, details = [], empty_details(len(images))
    for image, own in zip(images, details, strict=True):
        row, ease = dict(image), 2 * luck.random()

        def answer(head, names, true, row=row, own=own, ease=ease):
            logits, number = draw.normal(0, 1, (1, len(names))), class_numbers([true], names)
            if number[0] >= 0:
                logits[0, number[0]] += 2 * skill + ease
            own[head] = describe_answers(logits, number, 1.0)[0]
            row[f"{head}_pred"] = names[own[head]["top"][0]]
            row[f"{head}_prob"] = f"{own[head]['top_prob'][0]:.6f}"
            row[f"{head}_correct"] = str(int(row[f"{head}_pred"] == true)) if true else ""

        if row["status"] == "ok":
            answer("species", SPECIES, row["species"])
            if row["species_pred"] == row["species"]:
                for head in heads_of[row["species"]]:
                    answer(head, LABELS[head], row[f"{head}_true"])
        rows.append(row)
    files.write_csv(folder / PER_IMAGE, PER_IMAGE_COLUMNS, [row.values() for row in rows])
    np.save(folder / DETAILS_FILE, details)

    def model(name, heads):
        return {"path": f"{folder}/{name}.pt", "sha256": f"{skill}{name}", "heads": heads}

    specialists = {
        name: model(name, {head: LABELS[head] for head in heads})
        for name, heads in heads_of.items()
        if heads
    }
    models = {"stage1": model("stage1", {"species": SPECIES}), "specialists": specialists}
    models |= {"dataset": data, "precision": "fp32", "device": "cpu", "images_root": str(folder)}
    files.write_json(folder / MODELS, models)
    return folder


def read_cells(folder: Path) -> list[Row]:
    """Read the rows of an evaluation as text."""
    with (folder / PER_IMAGE).open(newline="", encoding="utf-8") as handle:
        return [{k: files.plain_cell(v) for k, v in r.items()} for r in csv.DictReader(handle)]
