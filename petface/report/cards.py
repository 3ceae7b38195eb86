"""Cards of an evaluation and of an identity run: Markdown templates filled from files.

Sections after Mitchell et al. 2019 (Model Cards, arXiv 1810.03993) and Gebru et al. 2021
(Datasheets for Datasets, arXiv 1803.09010).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petface import files
from petface.errors import UserError
from petface.evaluation.details import SUMMARY
from petface.evaluation.summary import contamination_lines
from petface.report import folders as read
from petface.report.folders import rows
from petface.report.page import render_markdown
from petface.report.run_page import IDENTITY, open_table, open_words

_SETTINGS = "BACKBONE WEIGHTS IMAGE_SIZE_PX EPOCHS BATCH_SIZE LR SCHEDULE SAMPLER SEED PRECISION"


def write_cards(
    folder: Path, *, people: Mapping[str, str], audit: str = "", out: Path | None = None
) -> list[Path]:
    """Write model_card.md and data_card.md of an evaluation, identity_card.md of an identity run.

    `UserError` where the folder holds neither, finished. `people` holds who answers for the model,
    its licence and the contact, "" = marked. `audit` is a folder of tools.audit, "" = none: what it
    would count is "not measured".
    """
    summary, models, problems = read.read_evaluation_files(folder)
    audited = read.read_json(Path(audit) / "audit.json", problems) if audit else {}
    if audit and not audited:
        raise UserError(f"{audit} holds no audit.json; run: python -m tools.audit --out {audit}")
    identity = read.read_json(folder / IDENTITY, problems)
    names = ["model_card", "data_card"] if summary and models else []
    names += ["identity_card"] if identity else []
    if not names:
        raise UserError(
            f"{folder} holds no finished evaluation ({SUMMARY}); run: python inference_engine.py "
            f"evaluate --out-dir {folder}"
        )
    facts = {
        "people": people,
        "problems": problems,
        "summary": summary,
        "models": models,
        "networks": _networks(folder, models, problems),
        "audit": audited,
        "headlines": read.headlines(summary),
        "heads": read.test_heads(summary),
        "test_words": read.test_words(summary),
        "is_unseen": not contamination_lines(summary),
        "identity": identity,
        "open_words": open_words,
        "open_table": open_table,
    }
    paths = [(out or folder) / f"{name}.md" for name in names]
    for path in paths:
        with files.atomic_write(path, "w") as handle:
            handle.write(render_markdown(f"{path.name}.jinja", **facts))
    return paths


def _networks(folder: Path, models: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """Describe each network by its run; a checkpoint that changed since is a problem instead."""
    found = []
    stage1 = ({"model": "stage 1", **row} for row in rows(models, "stage1"))
    for model in (*stage1, *rows(models, "specialists.{model}")):
        name, place, sha256 = (model.get(key) for key in ("model", "path", "sha256"))
        path = read.found_at(folder, str(place or ""))
        if path is None or files.sha256_of_file(path) != sha256:
            problems.append(f"{name}: {place} is not there any more, or another file")
            continue
        run = read.read_run(path.parent)
        made = {"epochs": len(run.history), "training_time": run.time, "device": run.device}
        settings = {key: run.settings.get(key) for key in _SETTINGS.split()}
        found.append({"model": name, **made, **settings, "SHA-256": sha256})
    return found
