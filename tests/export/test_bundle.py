"""Writing a bundle: what is replaced, nothing half after a stop, one writer at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from petface.errors import UserError
from petface.export import bundle as bundle_module
from petface.export.bundle import write_bundle
from petface.export.model import ExportOptions
from petface.inference import onnx_models
from tests.made_bundle import dataset_of, made_bundle


@pytest.fixture(scope="module")
def dataset(tree):
    return dataset_of(tree)


def test_a_finished_bundle_is_replaced_only_by_force(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    with pytest.raises(UserError, match="a finished bundle; --force replaces it"):
        write_bundle(whole, runs / "stage1/best.pt", {}, dataset, ExportOptions())
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is no bundle"):
        write_bundle(other, runs / "stage1/best.pt", {}, dataset, ExportOptions(), force=True)
    assert (other / "precious.txt").read_text() == "mine"
    (other / "bundle.json").write_text("{}")
    written = _as_written(whole / "stage1")
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    write_bundle(other, runs / "stage1/best.pt", {}, dataset, ExportOptions(), force=True)
    assert onnx_models.read(other / "stage1.onnx").heads["species"]
    assert list(tmp_path.iterdir()) == [other] and not (other / "precious.txt").exists()
    assert onnx_models.find(other, "cat") is None


def test_a_stopped_export_leaves_what_was_there(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    written = _as_written(whole / "stage1")
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    out = tmp_path / "bundle"
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, ExportOptions())
    before = (out / "bundle.json").read_bytes()
    turns = iter([written])

    def stopped(*_):
        try:
            return next(turns)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(bundle_module, "export_model", stopped)
    cats = {"cat": runs / "stage2/cat/cat_best.pt"}
    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, runs / "stage1/best.pt", cats, dataset, ExportOptions(), force=True)
    assert (out / "bundle.json").read_bytes() == before
    left = tmp_path / "bundle.unfinished"
    assert (left / "stage1.onnx").is_file() and not onnx_models.is_bundle(left)
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: written)
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, ExportOptions(), force=True)
    assert not left.exists(), "the next start removes it"


def test_two_do_not_write_one_bundle_at_once(tree, dataset, tmp_path, monkeypatch) -> None:
    runs, whole = made_bundle(tree)
    written = _as_written(whole / "stage1")
    out, refused = tmp_path / "bundle", []

    def another_starts(*_):
        with pytest.raises(UserError, match=f"unfinished is in use by process {os.getpid()}"):
            write_bundle(out, runs / "stage1/best.pt", {}, dataset, ExportOptions())
        refused.append(True)
        return written

    monkeypatch.setattr(bundle_module, "export_model", another_starts)
    write_bundle(out, runs / "stage1/best.pt", {}, dataset, ExportOptions())
    assert refused and onnx_models.is_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def _as_written(stem: Path) -> tuple[bytes, dict[str, Any]]:
    """What `export_model` returned for a file of a bundle."""
    card = json.loads(stem.with_suffix(".json").read_text())
    return stem.with_suffix(".onnx").read_bytes(), card
