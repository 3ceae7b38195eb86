"""Small run and evaluation folders as the trainers and `evaluate` leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petface import files
from petface.evaluation.details import PER_IMAGE, PER_IMAGE_COLUMNS
from petface.metrics import write_confusion

HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\u202eevil\u202c",
    "two\nlines",
    'quote"s & <b>',
    "$x^2$ $\\frac{1}{0}$",
    "\U0001f63a cat",
    "&amp;",
]


def make_run(
    folder: Path, *, names: list[str] | None = None, finished: bool = True, accuracy: float = 0.6543
) -> Path:
    """A finished stage 2 run of a breed head with a table of `names`."""
    names = names or ["Tabby", "Siamese", "Persian"]
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text(
        "# All constants of a run of stage2_resnet_multi.py; also a preset for it (--config).\n"
        f'RUN_NAME = "demo"\nPHASE_STAGES = ["heads"]\nBATCH_SIZE = 128\nLR_OLD = 1\n'
        f"SEED = 7\nIMAGES_ROOT = {json.dumps(names[0])}\n",
        encoding="utf-8",
    )
    environment = {"processor": "2 x <i>CPU</i>", "started": "2026-11-24T11:22:31+0000"}
    files.write_json(folder / "environment.json", environment)
    header = ["phase", "epoch", "train_loss", "val_loss", "val_breed_accuracy_frac",
              "learning_rate", "train_images_per_s", "train_s", "num_skipped_steps"]  # fmt: skip
    rows = [[1, 1, 2.5, "nan", 0.25, 0.001, 100, 30, 0], [1, 2, 1.5, 1.75, 0.5, 0.0005, 300, 30, 2],
            [2, 3, 1.25, 1.5, 0.625, 0.0001, 200, 30, 0]]  # fmt: skip
    files.write_csv(folder / "metrics.csv", header, rows)
    errors = [["cat", "a.png: <b>cut</b>"]]
    files.write_csv(folder / "errors.csv", ["species", "message"], errors)
    if finished:
        size = len(names)
        counts = 3 * np.eye(size, dtype=int) + np.roll(np.eye(size, dtype=int), 1, axis=1)
        write_confusion(folder / "confusion_test_breed.csv", counts, names)
        final = {
            "epochs": 3, "train_minutes": 1.5, "test_images": 40, "test_breed_known": 4 * size,
            "test_breed_accuracy": accuracy, "test_breed_balanced_accuracy": 0.4321,
            "test_breed_majority_baseline": 0.1234, "checkpoint": "runs/demo/cat_best.pt",
            "calibration": {"breed": {"num": 12, "ece_before": 0.2468, "ece_after": 0.1357,
                                      "coverage": 0.5, "accuracy": 0.9191,
                                      "reliability": [[0.8, 0.85, 50, 0.7, 0.95]],
                                      "curve": [[0.5, 0.9, 0.6], [1.0, 0.6161, 0.1]],
                                      "fitted": {"temperature": 1.25, "threshold": 0.777}}},
        }  # fmt: skip
        files.write_json(folder / "final.json", final)
    return folder


def figure(num: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """The metrics of a head in the summary."""
    return {
        "num": num, "num_records": num // 2, "accuracy": accuracy, "top3": 0.9317, "top5": 0.9719,
        "balanced_accuracy": 0.5011, "macro_f1": 0.4913, "kappa": 0.3141,
        "majority_baseline": 0.2223, "interval_95": [accuracy - 0.05, accuracy + 0.05],
        "ece": 0.031, **more,
    }  # fmt: skip


def make_summary(names: list[str]) -> dict[str, Any]:
    """A summary of the species `names[0]` and "dog" and the heads species and breed."""
    ends = {"end_to_end": {"num": 110, "accuracy": 0.5757, "interval_95": [0.5, 0.65]}}
    heads = {"species": figure(120, 0.9191), "breed": figure(100, 0.6161, **ends)}
    curve = {
        "num": 100, "threshold": 0.6789, "wanted_accuracy": 0.9, "coverage": 0.4848,
        "accuracy_of_answered": 0.9292,
        "curve": [[0.1, 1.0, 0.99], [0.5, 0.9, 0.6], [1.0, 0.6161, 0.1]],
        "reliability": [[0.3, 0.25, 50, 0.15, 0.4], [0.8, 0.85, 50, 0.7, 0.95]],
    }  # fmt: skip
    fused = {"num_records": 30, "accuracy_one_photo": 0.65, "accuracy_fused": 0.7373,
             "interval_95": None, "gain": 0.0873, "gain_interval_95": [0.01, 0.15]}  # fmt: skip
    return {
        "contamination": {"contaminated": "0 of 30 records", "num": 0, "not_known": 0},
        "num_images": 1234, "status_counts": {"ok": 1230, "unreadable": 4},
        "figures": dict.fromkeys(("train", "val", "test", "all"), heads),
        "per_species": {"test": {names[0]: heads, "dog": {"species": figure(60, 0.8282)}}},
        "per_record": {"test": {"breed": fused}},
        "confidence": {"breed": {"all": curve, names[0]: curve, "dog": {**curve, "num": 3}}},
        "top_confusions": {"breed": [
            {"species": "cat", "true": name, "predicted": "Siamese", "num": 17 + k,
             "share_of_true": 0.4646} for k, name in enumerate(names)]},
        "hardest_classes": {"breed": [{"species": "cat", "label": name, "num": 9,
                                       "num_records": 5, "recall": 0.1111} for name in names]},
    }  # fmt: skip


def make_analysis(names: list[str]) -> dict[str, Any]:
    """What `tools.analyse_errors` writes."""
    bins = [{"bin": name, "num": 20, "accuracy": 0.5252, "interval_95": [0.4, 0.6],
             "stands_out": True} for name in names]  # fmt: skip
    mistakes = [{"image": f"cat/00000{k}/00.png", "true": name, "predicted": "Siamese",
                 "probability": 0.9393, "true_probability": 0.0101, "rank": 3}
                for k, name in enumerate(names)]  # fmt: skip
    probe = {"name": "left 5 %", "group": "shift", "accuracy": 0.5, "change": -0.1161,
             "interval_95": [-0.2, -0.05], "agreement": 0.7}  # fmt: skip
    return {
        "mistakes": {"breed": mistakes},
        "slices": {"breed": {"brightness": {"bins": bins}}},
        "probes": {"breed": {"probes": [probe]}},
    }


def make_evaluation(
    folder: Path, names: list[str] | None = None, *, photos: Path | None = None
) -> Path:
    """A finished and analysed evaluation; class names are `names`.

    With `photos`, that folder gets four of five test photos, one predicted wrong; the fifth row's
    name leads out of it.
    """
    names = names or ["Tabby", "Siamese"]
    (folder / "analysis" / "photos").mkdir(parents=True)
    stage1 = {"path": names[0], "sha256": "ab" * 32, "heads": {"species": names}}
    root = str(photos or names[-1])
    models = {"stage1": stage1, "specialists": {}, "images_root": root, "dataset": "f00d"}
    heads = [{"species": "cat", "feature": "breed", "num_judged": 77, "agreement": 0.7171}]
    for name, content in (
        ("petface_eval_summary.json", make_summary(names)),
        ("petface_eval_models.json", models),
        ("analysis/analysis.json", make_analysis(names)),
        ("label_errors.json", {"heads": heads}),
    ):
        files.write_json(folder / name, content)
    picture = folder / "analysis" / "photos" / "gradcam_breed_mistakes.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    header = [
        "species",
        "record",
        "feature",
        "label",
        "suggested",
        "p_label",
        "p_suggested",
        "image",
    ]
    suspects = [["cat", "7", "breed", name, "Siamese", "0.0107", "0.8484", f"cat/7/{k}.png"]
                for k, name in enumerate(names)]  # fmt: skip
    files.write_csv(folder / "label_errors.csv", header, suspects)
    counts = np.triu(np.ones((len(names),) * 2, int)) + np.eye(len(names), dtype=int)
    for name in ("test_species", "test_breed_cat"):
        write_confusion(folder / "confusion" / f"{name}.csv", counts, names)
    rows = []
    shown = ["../secret.png", "train.png", *(f"cat/00000{k}/00.png" for k in range(4))]
    for k, name in enumerate(shown if photos else ()):
        is_wrong = k == 3
        row = dict.fromkeys(PER_IMAGE_COLUMNS, "") | {
            "image": name, "species": "cat", "record": str(k), "status": "ok",
            "split": "train" if name == "train.png" else "test", "species_pred": "cat",
            "species_prob": "0.99", "species_correct": "1", "breed_true": "Tabby",
            "breed_pred": "Siamese" if is_wrong else "Tabby", "breed_prob": "0.9",
            "breed_correct": str(int(not is_wrong)),
        }  # fmt: skip
        rows.append(list(row.values()))
        if name != "train.png":
            (photos / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 30), (50 * k, 0, 0)).save(photos / name)
    files.write_csv(folder / PER_IMAGE, PER_IMAGE_COLUMNS, rows)
    return folder


def make_comparison(names: list[str]) -> dict[str, Any]:
    """What `compare_evaluations` makes of two evaluations whose folders and notes are `names`."""
    test = {"num": 4, "num_records": 3, "accuracy_a": 0.5, "accuracy_b": 0.75, "difference": 0.25,
            "interval_95": [0.1, 0.4], "p_holm": 0.04, "verdict": "B better"}  # fmt: skip
    return {
        "a": {"folder": names[0]}, "b": {"folder": names[-1]},
        "notes": names, "num_changed": 7, "images": {"common": 1234},
        "figures": {"test": {"species": {"conditional": test}}, "val": {}},
    }  # fmt: skip
