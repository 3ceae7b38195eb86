"""Damaged, foreign and hostile checkpoints: an error with file, reason and way out."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petface.models import checkpoints, layouts
from petface.models.checkpoints import CheckpointError
from tests import reference_networks as reference
from tests.torture.checkpoints import odd_tensors, programs, with_pickle

SMALL = {
    "model": {
        "heads.gender.weight": torch.linspace(-1, 1, 1024).reshape(2, 512),
        "heads.gender.bias": torch.tensor([0.25, 0.5]),
    },
    "head_vocabs": {"gender": ["female", "male"]},
    "species": "cat",
    "backbone": "resnet18",
}


class Planted:
    """What runs a command while it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cat_best.pt"
    checkpoints.save(path, SMALL)
    return path


def refused(path: Path, *words: str) -> None:
    """Expect an error that names the file and holds `words`, and no way to run what is inside."""
    with pytest.raises(CheckpointError) as caught:
        layouts.read_stage2(path, "cat")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "weights_only" not in message
    for word in words:
        assert word in message, message


def test_a_flipped_bit_in_a_weight_is_named(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    place = whole.find(SMALL["model"]["heads.gender.weight"].numpy().tobytes())
    assert place > 0
    whole[place + 1000] ^= 1
    file.write_bytes(whole)
    refused(file, "checksum", "data/", "copy the file again")


def test_no_checkpoint_at_all(file: Path) -> None:
    half = file.read_bytes()[: file.stat().st_size // 2]
    for content in (b"", b"<!DOCTYPE html>" * 99, bytes(999), half):
        file.write_bytes(content)
        refused(file, "damaged or not a checkpoint", "copy the file again")
    for path in (file.parent / "dog_best.pt", file.parent):
        refused(path, "no such file")


@pytest.mark.parametrize("zipped", [True, False])
def test_planted_code_stays_asleep(file: Path, tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    torch.save({**SMALL, "optimizer": Planted(trace)}, file, _use_new_zipfile_serialization=zipped)
    refused(file, "holds pickled objects", "mkdir", "nothing of it was run", "state_dict()")
    file.write_bytes(pickle.dumps({"model": Planted(trace)}, protocol=2))
    refused(file, "holds pickled objects")
    file.write_bytes(pickle.dumps({"model": Planted(trace)}, protocol=4))
    refused(file, "holds pickled objects (GLOBAL by STACK_GLOBAL)")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Planted(trace)))  # it would have worked
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [torch.nn.Linear(2, 2), {"best": np.float64(0.5)}, {"run": Path("x")}, defaultdict(list)],
    ids=lambda content: type(content).__name__,
)
def test_pickled_objects_are_refused(file: Path, content: Any) -> None:
    torch.save(content, file)
    refused(file, "holds pickled objects (GLOBAL ", "store model.state_dict()")


def test_entries_are_counted_in_tables_of_tables(file: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_ITEMS", 99)
    torch.save({"model": [[0] * 9] * 11}, file)
    refused(file, "more than 99 entries")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], ["holds a list, not a dictionary"]),
        ({}, ['no weights under "model"']),
        ({"model": {"epoch": 3}}, ['no weights under "model"']),
        ({"model": {"fc.weight": torch.ones(2, 2)}}, ["holds no head"]),
        ({**SMALL, "format": 2}, ["format 2", "newer", "update PetFace"]),
        ({**SMALL, "format": "new"}, ["format new"]),
        ({**SMALL, "species": "dog"}, ["for dog, not for cat"]),
        ({**SMALL, "backbone": "vgg"}, ["unknown backbone 'vgg'", "resnet18"]),
        ({**SMALL, "backbone": ["resnet18"]}, ["unknown backbone"]),
        ({**SMALL, "format": 1, "architecture": 5}, ['"architecture": is not a table', "update"]),
        ({**SMALL, "format": 1, "architecture": {"depth": 9}}, ["is not a table of attention"]),
        ({**SMALL, "format": 1, "architecture": {"bodies": 10**9}}, ["bodies is of type int, not"]),
        ({**SMALL, "format": 1, "architecture": {"hidden": 5000}}, ["hidden is 5000, not"]),
        ({**SMALL, "format": 1, "architecture": {"dropout": float("nan")}}, ["dropout is nan"]),
        (
            {**SMALL, "format": 1, "architecture": {"backbone": "resnet50", "bodies": 2}},
            ['is of resnet50, "backbone" resnet18'],
        ),
        (  # the weights of a plain head
            {**SMALL, "format": 1, "architecture": {"hidden": 4}},
            ["do not fit the network", "heads.gender.1.weight"],
        ),
        ({**SMALL, "head_vocabs": {"gender": ["a", "b", "c"]}}, ["2 outputs but 3 class names"]),
        ({**SMALL, "head_vocabs": {"gender": {"a": 0, "b": 2}}}, ["number"]),
        ({**SMALL, "head_vocabs": {}, "format": 1}, ["lacks ['gender']", "copy the file again"]),
        ({**SMALL, "head_vocabs": 5}, ['"head_vocabs" is a int']),
        ({**SMALL, "preprocessing": {"size_px": 0}}, ["do not fit the network"]),
        ({"model": SMALL["model"]}, ["do not fit the network", "body.conv1.weight"]),
    ],
)
def test_wrong_content(file: Path, content: Any, words: list[str]) -> None:
    torch.save(content, file)
    refused(file, *words)


RULES = [None, {"size_px": 0}, {"size_px": 32, "resize": "crop"}]
CALIBRATIONS = [
    5, {}, {"temperature": None}, {"temperature": 0.0}, {"temperature": -1.0},
    {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": "2"},
    {"temperature": True}, {"temperature": 10**400}, {"temperature": torch.ones(())},
    {"temperature": 1.0, "threshold": float("nan")}, {"temperature": 1.0, "threshold": "0.5"},
    {"temperature": 1.0, "conformal_quantile": float("-inf")},
]  # fmt: skip
CLASSES = [
    None, {}, ["cat", "dog"], {"cat": 1, "dog": 2}, {"cat": 0, "dog": 0}, {"cat": "0"},
    {"cat": 0, "dog": None}, {"cat": False, "dog": True}, {"cat": 0, "dog": 1.0},
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [({"preprocessing": rule}, "preprocessing: ") for rule in RULES]
    + [({"calibration": {"species": e}}, '"calibration" of species makes') for e in CALIBRATIONS]
    + [({"calibration": [5]}, '"calibration" is a list')]
    + [({"class_to_index": table}, r'"class_to_index".*best\.pt') for table in CLASSES]
    + [({"class_to_index": {"a": 0, "b": 1, "c": 2}}, ".*do not fit the network")],
    ids=lambda value: str(value)[:40],
)
def test_nonsense_in_stage1(file: Path, change: dict[str, Any], message: str) -> None:
    whole = {"model": reference.classifier(2, 0), "class_to_index": {"a": 0, "b": 1}}
    torch.save({**whole, **change}, file)
    with pytest.raises(CheckpointError, match=rf"cat_best\.pt: {message}"):
        checkpoints.read_stage1(file)


def records_of(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_checkpoint_with_a_record_twice_is_refused(tmp_path):
    """Both checksums are right, and readers differ in which of the two they take."""
    path = tmp_path / "best.pt"
    checkpoints.save(path, {"model": {"w": torch.ones(8)}})
    records = records_of(path)
    name, content = next(record for record in records if record[0].endswith("/data/0"))
    with zipfile.ZipFile(path, "w") as archive:
        for record in [*records, (name, bytes(len(content)))]:
            archive.writestr(*record)
    with pytest.raises(CheckpointError, match=r"best\.pt: .*/data/0 stands in it twice; copy"):
        checkpoints.load(path)


def test_a_checkpoint_of_a_few_bytes_does_not_fill_the_memory(tmp_path, monkeypatch):
    """A compressed record is refused before a byte of it is unpacked."""
    path = tmp_path / "best.pt"
    checkpoints.save(path, {"model": {"w": torch.ones(8)}})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records_of(path):
            archive.writestr(name, bytes(50_000_000) if name.endswith("/data/0") else content)
    path.write_bytes(stream.getvalue())
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(CheckpointError, match="is compressed; copy the file again"):
        checkpoints.load(path)


@pytest.mark.parametrize("program", programs(), ids=str)
def test_a_pickle_builds_nothing_huge(tmp_path: Path, program: str) -> None:
    """Nothing is allocated, walked without end or said at length."""
    path = tmp_path / "cat_best.pt"
    stream = io.BytesIO()
    torch.save({"model": {}}, stream)
    path.write_bytes(with_pickle(stream.getvalue(), programs()[program]))
    with pytest.raises(CheckpointError) as caught:
        layouts.read_stage2(path, "cat")
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", odd_tensors(), ids=str)
def test_tensors_without_plain_values_are_refused(file: Path, name: str) -> None:
    model = {**SMALL["model"], "heads.gender.weight": odd_tensors()[name]}
    torch.save({**SMALL, "model": model}, file)
    refused(file)


def test_many_classes_and_a_huge_image_are_refused_before_they_are_built(file: Path) -> None:
    whole = {"model": reference.classifier(2, 0), "class_to_index": {"a": 0, "b": 1}}
    classes = {f"class {number}": number for number in range(10**5)}
    rule = {"resize": "stretch", "mean": None, "std": None}
    for change, words in (
        ({"class_to_index": classes}, "do not fit the network .shape: fc.weight"),
        ({"preprocessing": {**rule, "size_px": 10**9}}, "size_px is 1000000000, more than"),
        ({"preprocessing": {**rule, "size_px": 2**70}}, "size_px is"),
    ):
        torch.save({**whole, **change}, file)
        with pytest.raises(CheckpointError, match=words):
            checkpoints.read_stage1(file)
