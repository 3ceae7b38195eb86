"""The facts behind a model card and a data card: read from files, or honestly absent."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from petface.data.dataset import Dataset, load_dataset
from petface.errors import UserError
from petface.evaluation.details import MODELS, PER_IMAGE, SUMMARY
from petface.files import sha256_of_file
from petface.models import checkpoints

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ModelFacts:
    """One network: what the evaluation says of it, its checkpoint and the run that made it.

    `described` is its entry in petface_eval_models.json; `checkpoint` and the files of the run
    are empty where the checkpoint is not there any more.
    """

    described: dict[str, Any]
    checkpoint: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Facts:
    """Everything that the cards may say; `missing` lists what could not be read, and why."""

    folder: Path
    models: dict[str, Any]
    summary: dict[str, Any]
    stage1: ModelFacts
    specialists: dict[str, ModelFacts]
    audit: dict[str, Any]
    dataset: Dataset | None
    missing: list[str]


def read_facts(
    folder: str | Path,
    *,
    audit: str | Path = "",
    images_root: str | Path = "",
    annotations_root: str | Path = "",
    splits_file: str | Path = "",
) -> Facts:
    """Gather the facts of an evaluation; `UserError` where it is none.

    Checkpoints and data stand in the evaluation by the paths it was called with: they are looked
    for here and, if relative, from the folders above the evaluation. `audit` is a folder of
    tools.audit, "" = none; the roots and `splits_file` stand in for those of the evaluation.
    """
    folder, missing = Path(folder), list[str]()
    for name in (MODELS, SUMMARY):
        if not (folder / name).is_file():
            old = (folder / PER_IMAGE).exists()
            raise UserError(
                f"{folder} holds no {name}; run: python inference_engine.py evaluate --out-dir "
                f"{folder}" + (" --force (an earlier version made this evaluation)" if old else "")
            )
    models, summary = read_json(folder / MODELS), read_json(folder / SUMMARY)
    stage1 = _model(folder, "stage 1", models.get("stage1", {}), missing)
    specialists = {
        str(name): _model(folder, f"specialist {name}", described, missing)
        for name, described in models.get("specialists", {}).items()
    }
    report: dict[str, Any] = {}
    if audit:
        path = Path(audit)
        path = path / "audit.json" if path.is_dir() else path
        if not path.is_file():
            raise UserError(
                f"{audit} holds no audit.json; run: python -m tools.audit --out {audit}"
            )
        report = read_json(path)
    dataset = _dataset(
        folder,
        {
            "images_root": images_root or models.get("images_root", ""),
            "annotations_root": annotations_root or models.get("annotations_root", ""),
            "splits_file": splits_file or models.get("splits_file", ""),
        },
        models.get("dataset"),
        missing,
    )
    return Facts(folder, models, summary, stage1, specialists, report, dataset, missing)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `UserError` where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); make it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no object; make it again")
    return found


def found_at(folder: Path, path: str | Path) -> Path | None:
    """Find a path that was given to an evaluation, from here or from above its folder."""
    if not str(path):
        return None
    for base in (Path(), *folder.resolve().parents):
        if (base / path).exists():
            return base / path
    return None


def get(value: Any, *keys: str) -> Any:
    """Follow keys into nested dictionaries; None where the way ends."""
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _model(folder: Path, what: str, described: dict[str, Any], missing: list[str]) -> ModelFacts:
    path = found_at(folder, described.get("path", ""))
    if path is None or not path.is_file():
        missing.append(f"{what}: the checkpoint {described.get('path')} is not there any more")
        return ModelFacts(described)
    if sha256_of_file(path) != described.get("sha256"):
        missing.append(f"{what}: {path} is no longer the checkpoint that was evaluated")
        return ModelFacts(described)
    content = checkpoints.load(path)
    weights = [t for t in content.get("model", {}).values() if hasattr(t, "is_floating_point")]
    known = {
        "format": content.get("format"),
        "backbone": _network_of(path, content),
        "pretrained": content.get("pretrained"),
        "epoch": get(content, "figures", "epoch"),
        "num_weights": sum(t.numel() for t in weights if t.is_floating_point()) or None,
    }
    run = path.parent
    return ModelFacts(
        described, known, *(_optional(run / name, missing) for name in
                            ("final.json", "settings.toml", "environment.json"))
    )  # fmt: skip


def _network_of(path: Path, content: Mapping[str, Any]) -> str | None:
    if "architecture" not in content:
        return content.get("backbone")
    return str(checkpoints.read_architecture(path, content))


def _optional(path: Path, missing: list[str]) -> dict[str, Any]:
    if not path.is_file():
        missing.append(f"{path} is not there")
        return {}
    try:
        if path.suffix == ".toml":
            return tomllib.loads(path.read_text(encoding="utf-8"))
        return read_json(path)
    except ValueError as error:  # UserError is one
        missing.append(f"{path} cannot be read ({error})")
        return {}


def _dataset(
    folder: Path, paths: dict[str, Any], fingerprint: object, missing: list[str]
) -> Dataset | None:
    """Load the data of the evaluation where it is still there; never make a split for it."""
    images = found_at(folder, paths["images_root"])
    labels = found_at(folder, paths["annotations_root"])
    if images is None or labels is None:
        missing.append(f"the data under {paths['images_root']} are not there: nothing was counted")
        return None
    splits = found_at(folder, paths["splits_file"]) if paths["splits_file"] else None
    splits = splits or images.absolute().parent / "splits.csv"
    if not splits.exists():
        missing.append(f"the split {splits} is not there: the data were not counted")
        return None
    try:
        dataset = load_dataset(images, labels, splits_file=splits)
    except UserError as error:
        missing.append(f"the data cannot be read: {error}")
        return None
    if dataset.fingerprint() != fingerprint:
        missing.append("the data have changed since the evaluation; the counts are of today's data")
    return dataset
