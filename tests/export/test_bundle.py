"""Writing a bundle: what is replaced, nothing half after a stop, one writer at a time."""

from __future__ import annotations

import json
import os

import pytest

from petface.errors import UserError
from petface.export import bundle as bundle_module
from petface.export.bundle import write_bundle
from petface.export.model import ExportOptions
from petface.inference import onnx_models
from tests.made_bundle import dataset_of, made_bundle


@pytest.fixture
def write(tree, monkeypatch):
    """Write a bundle of stage 1 and of some specialists; each export is that of the whole one."""
    runs, whole = made_bundle(tree)
    card = json.loads((whole / "stage1.json").read_text())
    exported = (whole / "stage1.onnx").read_bytes(), card
    monkeypatch.setattr(bundle_module, "export_model", lambda *_: exported)

    def write(out, *species, **keywords):
        paths = {name: runs / f"stage2/{name}/{name}_best.pt" for name in species}
        stage1, dataset = runs / "stage1/best.pt", dataset_of(tree)
        write_bundle(out, stage1, paths, dataset, ExportOptions(), **keywords)

    return write


def test_a_finished_bundle_is_replaced_only_by_force(tree, write, tmp_path) -> None:
    with pytest.raises(UserError, match="a finished bundle; --force replaces it"):
        write(made_bundle(tree)[1])
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is no bundle"):
        write(other, force=True)
    assert (other / "precious.txt").read_text() == "mine"
    (other / "bundle.json").write_text("{}")
    write(other, force=True)
    assert onnx_models.read(other / "stage1.onnx").heads["species"]
    assert list(tmp_path.iterdir()) == [other] and not (other / "precious.txt").exists()
    assert onnx_models.find(other, "cat") is None


def test_a_stopped_export_leaves_what_was_there(write, tmp_path, monkeypatch) -> None:
    out, left = tmp_path / "bundle", tmp_path / "bundle.unfinished"
    write(out)
    before, export_model = (out / "bundle.json").read_bytes(), bundle_module.export_model

    def stopped(_path, species, *_):
        if species:
            raise KeyboardInterrupt
        return export_model()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bundle_module, "export_model", stopped)
        write(out, "cat", force=True)
    assert (out / "bundle.json").read_bytes() == before
    assert (left / "stage1.onnx").is_file() and not onnx_models.is_bundle(left)
    write(out, force=True)
    assert not left.exists(), "the next start removes it"


def test_two_do_not_write_one_bundle_at_once(write, tmp_path, monkeypatch) -> None:
    out, refused, export_model = tmp_path / "bundle", [], bundle_module.export_model

    def another_starts(*_):
        with pytest.raises(UserError, match=f"unfinished is in use by process {os.getpid()}"):
            write(out)
        refused.append(True)
        return export_model()

    monkeypatch.setattr(bundle_module, "export_model", another_starts)
    write(out)
    assert refused and onnx_models.is_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
