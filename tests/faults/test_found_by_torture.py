"""What `make torture` has found, each as small as it can be."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from petface import checkpoints
from petface.checkpoints import CheckpointError


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
