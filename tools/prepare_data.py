"""Turn a source of photos into a PetFace tree, so that both trainers and the evaluation take it.

    python -m tools.prepare_data image_folder --source my_pets --out data/my_pets
    python -m tools.prepare_data image_folder --source new_photos --checkpoint runs/x/best.pt
    python -m tools.prepare_data oxford_pets --download true               # 37 breeds, one stage
    python -m tools.prepare_data oxford_pets --stages two                  # cat or dog, then breed
    python -m tools.prepare_data inat_json --source inat --train train2018.json --val val2018.json

The tree holds links to the photos, the breeds as annotations, and the source's own split; the
source itself stays as it is. Prints what was found and left out, and the commands that come next.
Each photo counts as one animal unless it lies in a folder of its own animal inside its class.
`sources.csv` in the tree tells where each photo came from, `left_out.csv` what is not used and why.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from petface.errors import SettingsError, run_script  # isort: split

import numpy as np
import pandas

from petface.data.sources import readers
from petface.data.sources.layout import Found, check_out, prepare, safe_name
from petface.data.splits import SPLITS
from petface.settings import Seed, Settings, read_settings

KINDS = "image_folder", "oxford_pets", "inat_json"
OXFORD_PRESETS = {"one": "oxford_pets", "two": "oxford_pets_two"}  # in configs/, by STAGES

# ---- What is read ----
SOURCE: str = ""  # folder of the photos; "" = data/oxford for oxford_pets, else it must be given
DOWNLOAD: bool = False  # oxford_pets: let torchvision fetch it into SOURCE, 800 MB
STAGES: Literal["one", "two"] = "one"  # oxford_pets: one: 37 breeds; two: cat or dog, then breed
TRAIN: str = ""  # inat_json: JSON of the training photos; alone, it is split when first used
VAL: str = ""  # inat_json: JSON of the validation photos

# ---- What becomes of it ----
OUT: str = ""  # new folder; "" = data/oxford_pets, data/oxford_pets_two or data/<source>_petface
CHECKPOINT: str = ""  # best.pt of stage 1: classes it does not know leave the test split
VAL_AS: Literal["test", "val"] = "test"  # what a val split is where there is no test split
LINK: Literal["symbolic", "hard", "copy"] = "symbolic"  # how photos get there
SEED: Seed = 0  # of the parts that are cut from train


def describe(found: Found) -> str:
    """Return a table of the photos per class and part, the notes, and what was left out."""
    photos = [(entry.species, entry.part or "photos") for entry in found.entries]
    counts = pandas.crosstab(*map(np.array, zip(*photos, strict=True)), colnames=["class"])
    counts = counts.reindex(columns=list(SPLITS) if found.parts else ["photos"], fill_value=0)
    counts.loc[f"all {len(counts)} classes"] = counts.sum()
    table = counts.map("{:,}".format).rename_axis(index=None).to_string(max_rows=40)
    lines = [table, *found.notes]  # classes in the middle are left out: sources.csv holds all
    for reason, num in sorted(Counter(reason for _, reason in found.left_out).items()):
        examples = [what for what, why in found.left_out if why == reason][:3]
        lines.append(f"left out, {reason}: {num:,}, such as {', '.join(examples)}")
    return "\n".join(lines)


def next_commands(kind: str, out: str, found: Found, s: Settings) -> list[list[str]]:
    """Return the exact commands that use the tree."""
    train, evaluate = ["train_resnet_minority_aug_dynamic.py"], ["inference_engine.py", "evaluate"]
    tree = ["--images-root", f"{out}/images", "--annotations-root", f"{out}/annotations"]
    if kind == "oxford_pets":
        scripts = {"stage1": train, "stage2": ["stage2_resnet_multi.py"], "eval": evaluate}
        name = OXFORD_PRESETS[s.STAGES]
        return [
            [*words, "--config", f"configs/{folder}/{name}.toml", *(tree if s.OUT else [])]
            for folder, words in scripts.items()
            if folder != "stage2" or s.STAGES == "two"
        ]
    run = safe_name(Path(out).name)
    checkpoint = ["--stage1-checkpoint", s.CHECKPOINT or f"runs/{run}/best.pt"]
    commands = [[*evaluate, *checkpoint, *tree, "--out-dir", f"runs/{run}_evaluation"]]
    if not s.CHECKPOINT and ("train" in found.parts or not found.parts):
        fine_tuning = ["--config", "configs/stage1/own_photos.toml"]
        commands.insert(0, [*train, *fine_tuning, *tree, "--run-name", run])
    return commands


def main(argv: Sequence[str] | None = None) -> None:
    s = read_settings(sys.modules[__name__], argv, positional=("SOURCE", " or ".join(KINDS)))
    kind = s.positional[0] if len(s.positional) == 1 else ""
    if kind not in KINDS:
        words = " ".join(s.positional)
        raise SettingsError(f"give one source of {', '.join(KINDS)}, not {words!r}")
    source = s.SOURCE or ("data/oxford" if kind == "oxford_pets" else "")
    if not source or kind == "inat_json" and not s.TRAIN:
        raise SettingsError(f"{'--train' if source else '--source'} is missing; see --help")
    own = safe_name(Path(source).resolve().name)
    name = OXFORD_PRESETS[s.STAGES] if kind == "oxford_pets" else f"{own}_petface"
    out, classes = str(Path(s.OUT or f"data/{name}")), None
    check_out(Path(out).absolute(), Path(source).absolute())  # before anything is downloaded
    if s.CHECKPOINT:
        from petface.models import checkpoints

        classes = checkpoints.read_stage1(s.CHECKPOINT).heads["species"]
    if kind == "oxford_pets" and s.DOWNLOAD:
        readers.download_oxford_pets(source)
    found = {
        "image_folder": lambda: readers.read_image_folder(source),
        "oxford_pets": lambda: readers.read_oxford_pets(source, s.STAGES),
        "inat_json": lambda: readers.read_inat_json(source, s.TRAIN, s.VAL or None),
    }[kind]()
    prepare(found, out, link=s.LINK, seed=s.SEED, checkpoint_classes=classes, val_as=s.VAL_AS)
    print(f"{describe(found)}\n\nnext:")
    for words in next_commands(kind, out, found, s):
        print(f"    python {shlex.join(words)}")
    print(f"\nsource: {found.source}\nfolder: {out}\nphotos: {len(found.entries)}")
    print(f"left_out: {len(found.left_out)}")


if __name__ == "__main__":
    run_script(main)
