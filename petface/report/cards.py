"""Model card and data card of an evaluation: two Markdown templates filled from files.

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
from petface.evaluation.figures import interval, percent
from petface.report import folders as read
from petface.report.page import render_markdown, table

_SETTINGS = "BACKBONE WEIGHTS IMAGE_SIZE_PX EPOCHS BATCH_SIZE LR SCHEDULE SAMPLER SEED PRECISION"


def write_cards(
    folder: Path, *, people: Mapping[str, str], audit: str = "", out: Path | None = None
) -> list[Path]:
    """Write model_card.md and data_card.md of a finished evaluation; `UserError` where it is none.

    `people` holds who answers for the model, its licence and the contact, "" = marked. `audit` is
    a folder of tools.audit, "" = none: what it would count is "not measured".
    """
    summary, models, problems = read.read_evaluation_files(folder)
    if not summary or not models:
        raise UserError(
            f"{folder} holds no finished evaluation ({SUMMARY}); run: python inference_engine.py "
            f"evaluate --out-dir {folder}"
        )
    audited = read.read_json(Path(audit) / "audit.json", problems) if audit else {}
    if audit and not audited:
        raise UserError(f"{audit} holds no audit.json; run: python -m tools.audit --out {audit}")
    facts = {**_facts(folder, summary, models, problems), **_audited(audited), "people": people}
    written = []
    for name in ("model_card", "data_card"):
        path = (out or folder) / f"{name}.md"
        with files.atomic_write(path, "w") as handle:
            handle.write(render_markdown(f"{name}.md.jinja", **facts))
        written.append(path)
    return written


def _facts(
    folder: Path, summary: dict[str, Any], models: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    """Gather what both templates say; a checkpoint that changed since is a problem, not a fact."""
    heads = read.test_heads(summary)
    species = read.rows(read.dig(summary, "per_species", "test"), "species", "head")
    runs = {}
    for name, model in (
        ("stage 1", read.entries(models, "stage1")),
        *read.entries(models, "specialists").items(),
    ):
        path = read.found_at(folder, str(model.get("path", "")))
        if path is None or files.sha256_of_file(path) != model.get("sha256"):
            problems.append(f"{name}: {model.get('path')} is not there any more, or another file")
        else:
            runs[name] = (model, read.read_run(path.parent))
    return {
        "summary": summary,
        "models": models,
        "heads": heads,
        "head_table": table(heads, _HEAD_KEYS),
        "species_table": table(species, "species head num accuracy interval_95 majority_baseline"),
        "model_table": table(_model(name, *own) for name, own in runs.items()),
        "headlines": read.headlines(summary),
        "problems": problems,
        "percent": percent,
        "interval": interval,
    }


def _audited(audit: dict[str, Any]) -> dict[str, Any]:
    """Format what an audit counted per species and per attribute."""
    species = read.rows(audit.get("per_species"), "species")
    parts = " ".join(f"records_per_split.{part}" for part in ("train", "val", "test"))
    heads = read.rows(audit.get("heads"), "species", "attribute")
    return {
        "audit": audit,
        "audit_species": table(species, f"species records photos {parts}"),
        "audit_heads": table(heads),
    }


_HEAD_KEYS = (
    "head num num_records accuracy interval_95 majority_baseline balanced_accuracy "
    "end_to_end.accuracy per_record.accuracy macro_f1 top3 ece"
)


def _model(name: str, model: dict[str, Any], run: read.Run) -> dict[str, Any]:
    settings = {key: run.settings.get(key) for key in _SETTINGS.split()}
    trained = {"epochs": len(run.history) or None, "training_time": run.time, "device": run.device}
    return {"model": name, **trained, **settings, "SHA-256": model.get("sha256")}
