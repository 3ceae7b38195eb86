"""Train on your own photos, from a folder of classes to a network to serve, in one command.

    petface train my_pets                # <my_pets>/<class>/<photo>
    petface train my_pets --weights weights/mobilenet_v2.pth    # without a network

It looks at the photos, lays them out in data/<NAME>, splits them, trains a network (from ImageNet
weights where they can be had, else from scratch), evaluates it on photos that it has not seen,
writes the pages, and prints the commands that come next. Each step is printed as a command and can
be given alone. After an interruption the same command resumes. 1,500 photos of 6 classes take
8 minutes of one CPU core.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from petface.errors import SettingsError, UserError, run_script  # isort: split

import numpy as np

from petface import files
from petface.data import images, splits
from petface.data.catalog import build_catalog
from petface.data.fingerprint import describe_photos
from petface.data.sources.layout import MARKER, Found, prepare, safe_name
from petface.data.sources.readers import read_image_folder
from petface.evaluation.details import SUMMARY
from petface.models.backbones import build_body, load_torchvision_weights
from petface.settings import NonNegative, Settings, read_settings
from tools.prepare_data import describe
from tools.sweep import ROOT, run_to_end

# ---- Photos and folders ----
NAME: str = ""  # data/<NAME> and runs/<NAME>; "" = the name of the folder of photos
DATA_ROOT: str = "data"
RUNS_ROOT: str = "runs"

# ---- Network ----
WEIGHTS: str = "auto"  # auto: ImageNet weights, downloaded; none: from scratch; a file of them
IMAGE_SIZE_PX: NonNegative = 0  # both sides; 0 = by the size of the photos
EPOCHS: NonNegative = 0  # 0 = by the number of photos
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1, mps

BACKBONE = "mobilenet_v2"  # of the fine-tuning preset
DOOR = ROOT / "petface_command.py"


def main(argv: list[str] | None = None) -> int:
    words = "FOLDER", "holds a folder of photos per class"
    s = read_settings(sys.modules[__name__], argv, positional=words)
    if len(s.positional) != 1:
        raise SettingsError("give one folder of photos, <folder>/<class>/<photo>; see --help")
    found = read_image_folder(s.positional[0])
    if len(found.classes) < 2:
        raise UserError(f"{found.source}: only the class {found.classes[0]!r}; two are needed")
    print(f"{len(found.entries):,} photos of {len(found.classes)} classes in {found.source}")
    name = s.NAME or safe_name(found.source.name)
    tree, run = Path(s.DATA_ROOT, name), Path(s.RUNS_ROOT, name)
    roots = ["--images-root", f"{tree}/images", "--annotations-root", f"{tree}/annotations"]
    models = ["--stage1-checkpoint", f"{run}/stage1/best.pt"]
    lay_out(found, tree, run)
    audit, evaluation = run / "audit", run / "evaluation"
    for made, line in (
        (audit / "audit.html", ["audit", *roots, "--out", audit]),
        (run / "stage1/final.json", ["train-species", *training_flags(s, found, name), *roots]),
        (evaluation / SUMMARY, ["evaluate", *models, *roots, "--out-dir", evaluation,
                                "--device", s.DEVICE]),
    ):  # fmt: skip
        if made.exists():
            print(f"\n{made} is there already; left out: {shown(line)}")
            continue
        print(f"\n$ {shown(line)}", flush=True)
        if code := run_to_end([str(DOOR), *map(str, line)]):
            return code
    test = files.read_json(evaluation / SUMMARY)["splits"]["test"]["stage1"]["overall"]
    print(f"\ntest_images: {test['num']}\ntest_accuracy: {test['accuracy']:.4f}")
    print(f"pages: {run}/stage1/report.html, {run}/evaluation/report.html\n\nnext:")
    print(f"    {shown(['show', found.entries[0].path, *models])}")
    out = ["--out", f"{name}_predictions.csv"]
    print(f"    {shown(['predict', found.source, *models, *out])}")
    print(f"    {shown(['serve', *models])}")
    return 0


def lay_out(found: Found, tree: Path, run: Path) -> None:
    """Write the photos as a PetFace tree, unless it is there; one of other photos is refused."""
    command = shown(["prepare", "image_folder", "--source", found.source, "--out", tree])
    listed, now = tree.with_name(f"{tree.name}.photos.json"), describe_photos_of(found)
    way_out = f"choose another --name, or remove {tree} and {run}"
    if not (tree / MARKER).exists():
        if run.exists():
            raise UserError(f"{run} was made of {tree}, which is not there: {way_out}")
        files.write_json(listed, now)  # first, as the tree is there whole or not at all
        print(f"\n$ {command}", flush=True)
        prepare(found, tree)
        print(describe(found))
        return
    marker, num = files.read_json(tree / MARKER), len(found.entries) + len(found.left_out)
    made_of = marker.get("source"), marker.get("photos", 0) + marker.get("left_out", 0)
    before = now if made_of == (str(found.source), num) else {}  # where `prepare` was given alone
    before = files.read_json(listed) if listed.exists() else before
    if changed := sorted({name for name, _ in before.items() ^ now.items()}):
        what = f"{tree} was made of other photos of {', '.join(changed)}"
        raise UserError(f"{what} than {found.source} holds now: {way_out}")
    print(f"\n{tree} is there already; left out: {command}")


def describe_photos_of(found: Found) -> dict[str, str]:
    """Hash paths, sizes and times of the photos as they lie in the source; hex digest per class."""
    paths = defaultdict[str, list[bytes]](list)
    for entry in found.entries:
        paths[entry.species].append(os.fsencode(entry.path))
    everything = ((name, name, sorted(own)) for name, own in sorted(paths.items()))
    return describe_photos(build_catalog(found.source, everything), found.classes)


def training_flags(s: Settings, found: Found, name: str) -> list[str]:
    """Choose preset, weights, size and epochs of the training, and say why.

    A training that was begun resumes with its own settings, whether or not a network is there now.
    """
    chosen = {"--image-size-px": s.IMAGE_SIZE_PX, "--epochs": s.EPOCHS}
    given = [word for flag, value in chosen.items() if value for word in (flag, str(value))]
    given += ["--device", s.DEVICE]
    begun = Path(s.RUNS_ROOT, name, "stage1/settings.toml")
    if begun.exists():
        return ["--config", str(begun), *given]
    side_px, num = median_side_px(found), len(found.entries)
    weights, why = s.WEIGHTS, "by --weights"
    if weights == "auto":
        why = load_torchvision_weights(build_body(BACKBONE), BACKBONE, "auto")
        weights = "none" if why.startswith("random") else "torchvision"
    if weights == "none":
        print(f"no ImageNet weights ({why}): trains from scratch, which needs many more photos")
        preset, size_px, epochs = "own_photos_scratch", min(96, max(32, side_px // 32 * 32)), 40
    else:
        preset, size_px, epochs = "own_photos", 224 if side_px >= 192 else 160, 10
    epochs = max(4, min(2 * epochs, round(epochs * 1500 / num)))  # so many for 1,500 photos
    size_px, epochs = s.IMAGE_SIZE_PX or size_px, s.EPOCHS or epochs
    print(f"{preset}: {size_px} px (photos: median side {side_px} px), {epochs} epochs")
    flags = ["--config", f"configs/stage1/{preset}.toml", "--weights", weights]
    flags += ["--runs-root", s.RUNS_ROOT, "--run-name", f"{name}/stage1"]
    return [*flags, "--image-size-px", str(size_px), "--epochs", str(epochs), *given]


def median_side_px(found: Found) -> int:
    """Return the median shorter side of 200 photos, spread evenly over the classes."""
    places, sides = splits.sample_evenly(np.array([e.species for e in found.entries]), 200), []
    for place in places:
        with suppress(Exception):  # of any kind; the training counts and names it
            sides.append(min(images.read_header(found.entries[place].path)))
    if not sides:
        raise UserError(f"{found.source}: none of {len(places)} photos can be read")
    return int(np.median(sides))


def shown(words: list[str | Path]) -> str:
    """Format a command as it can be typed here."""
    door = ["petface"] if shutil.which("petface") else ["python", os.path.relpath(DOOR)]
    return shlex.join([*door, *map(str, words)])


if __name__ == "__main__":
    run_script(main)
