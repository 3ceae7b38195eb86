"""A tiny PetFace tree and one run of each script on it, made once and read by many tests."""

from __future__ import annotations

import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import scripts

# A runner under nohup or in the background ignores signals, and what it starts inherits that.
_HEARD = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
for number, action in _HEARD.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        with suppress(ValueError):  # not the main thread
            signal.signal(number, action)

# Per species: base colour, records, and the columns of its annotation file (None: no file).
# Chimp's gender is known for one record only, dog's for none, hedgehog's Color2 has no valid value.
_BREEDS = ["Plain", "Bulldog, Olde mix", "P. t. verus"]
_SPECIES = {
    "cat": ((220, 60, 40), 16, ["Gender", "Breed", "Color1", "Color2"]),
    "chimp": ((60, 60, 70), 12, ["Gender", "Breed"]),
    "dog": ((40, 120, 220), 14, ["Gender", "Breed"]),
    "yak": ((200, 200, 60), 10, None),
}
TRUNCATED, BOMB, EMPTY = "cat/000003/01.png", "cat/000007/00.png", "dog/000002/00.png"


@dataclass(frozen=True)
class Tree:
    """Where a dataset is."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def annotations(self) -> Path:
        return self.root / "annotations"

    @property
    def flags(self) -> list[object]:
        return ["--images-root", self.images, "--annotations-root", self.annotations]

    def copy(self, root: Path) -> Tree:
        shutil.copytree(self.root, root)
        return Tree(root)


def _photo(colour: Sequence[int], breed: int, draw: np.random.Generator) -> Image.Image:
    """One photo: the species' colour, a bar whose place tells the breed, noise."""
    side = int(draw.integers(32, 49))
    pixels = np.full((side, side, 3), colour, np.float64)
    pixels[:, breed * side // 3 : (breed + 1) * side // 3] *= 0.4
    pixels += draw.normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A PNG of a few bytes whose header promises 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def make_tree(root: Path) -> Tree:
    """Write 52 records with two or three photos each; three of the photos cannot be used."""
    draw = np.random.default_rng(7)
    (root / "annotations").mkdir(parents=True)
    for species, (colour, num_records, columns) in _SPECIES.items():
        rows = [",".join(["Name", *(columns or [])])]
        for number in range(num_records):
            breed = int(draw.integers(0, 3))
            folder = root / "images" / species / f"{number:06d}"
            folder.mkdir(parents=True)
            for photo in range(int(draw.integers(2, 4))):
                _photo(colour, breed, draw).save(folder / f"{photo:02d}.png")
            cells = {
                "Gender": {"cat": draw.choice(["Male", "Female", "unknown"])}.get(species, "unk"),
                "Breed": f'"{_BREEDS[breed]}"' if draw.random() < 0.9 else "",
                "Color1": ["White", "Black"][breed % 2],
                "Color2": draw.choice(["Tabby", "Seal", "unknown"]),
            }
            rows.append(",".join([str(number), *(str(cells[c]) for c in columns or [])]))
        if columns:
            (root / "annotations" / f"{species}.csv").write_text("\n".join(rows) + "\n")
    text = (root / "annotations/chimp.csv").read_text()
    (root / "annotations/chimp.csv").write_text(text.replace("unk", "Male", 1))
    whole = (root / "images" / TRUNCATED).read_bytes()
    (root / "images" / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    (root / "images" / BOMB).write_bytes(bomb())
    (root / "images" / EMPTY).write_bytes(b"")
    return Tree(root)


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Tree:
    """The tiny dataset, to be read only; `tree.copy(...)` to change it."""
    return make_tree(tmp_path_factory.mktemp("data") / "PetFace")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory) -> Iterator[Path]:
    """A folder for the tests of one module; gone after the last of them, as networks are large."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Run:
    """A finished run of a script: its folder, and how it ended."""

    folder: Path
    result: scripts.Result


TINY = ["--image-size-px", 32, "--precision", "fp32", "--device", "cpu", "--batch-size", 8,
        "--num-workers", 0, "--max-bad-fraction", 0.1]  # fmt: skip
# With everything on that has a state of its own, so that each resume and kill meets it.
TINY_STATEFUL = ["--ema-decay", 0.9, "--mix", "both", "--mix-adapts", "--clip-norm", 5]
TINY_STAGE1 = [*TINY, "--epochs", 3, "--schedule", "cosine", "--warmup-frac", 0.1,
               "--head-exclusion-max", 30, "--min-recall-support", 3, *TINY_STATEFUL]  # fmt: skip
TINY_STAGE2 = [*TINY, "--phase-epochs", 2, 1, "--normalize", "none", "--schedule", "linear",
               *TINY_STATEFUL]  # fmt: skip


@pytest.fixture(scope="session")
def stage1_run(tree, tmp_path_factory) -> Run:
    """Stage 1 trained as a user does."""
    runs = tmp_path_factory.mktemp("stage1")
    arguments = [*tree.flags, *TINY_STAGE1, "--runs-root", runs, "--run-name", "straight"]
    return Run(runs / "straight", scripts.run_fresh(scripts.STAGE1, arguments))


@pytest.fixture(scope="session")
def stage2_flags(tree, stage1_run) -> list[object]:
    """The flags of the specialists' runs, but for runs root, run name and species."""
    return [*tree.flags, *TINY_STAGE2, "--weights", stage1_run.folder / "best.pt"]


@pytest.fixture(scope="session")
def stage2_run(stage2_flags, tmp_path_factory) -> Run:
    """All specialists trained as a user does."""
    runs = tmp_path_factory.mktemp("stage2")
    arguments = [*stage2_flags, "--runs-root", runs, "--run-name", "straight"]
    return Run(runs / "straight", scripts.run_fresh(scripts.STAGE2, arguments))


@pytest.fixture(scope="session")
def model_flags(stage1_run, stage2_run) -> list[object]:
    """The flags that name the trained networks."""
    return ["--stage1-checkpoint", stage1_run.folder / "best.pt", "--stage2-folder",
            stage2_run.folder, "--device", "cpu", "--precision", "fp32"]  # fmt: skip


@pytest.fixture(scope="session")
def evaluation_flags(tree, model_flags) -> list[object]:
    """The flags of an evaluation, but for the folder that it writes to."""
    batches = ["--batch-size", 8, "--num-workers", 0]
    return ["evaluate", *tree.flags, *model_flags, *batches]


@pytest.fixture(scope="session")
def evaluation_run(evaluation_flags, tmp_path_factory) -> Run:
    """Both stages over the whole tree, as a user does."""
    out = tmp_path_factory.mktemp("evaluation") / "straight"
    return Run(out, scripts.run_fresh(scripts.INFERENCE, [*evaluation_flags, "--out-dir", out]))


@pytest.fixture
def script(tmp_path) -> Callable[..., scripts.Result]:
    """Run a script in a fork of a warm interpreter."""

    def run(name: str, arguments: Sequence[object], *hooks: scripts.Hook | None):
        return scripts.run_forked(name, arguments, tmp_path, *hooks)

    return run
