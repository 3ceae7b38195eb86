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

from petface.data.sources.image_folder import read_image_folder
from petface.data.sources.inat_json import read_inat_json
from petface.data.sources.layout import Found, check_out, prepare, safe_name
from petface.data.sources.oxford_pets import download_oxford_pets, read_oxford_pets
from petface.data.splits import SPLITS
from petface.errors import SettingsError, run_script
from petface.settings import Seed, Settings, read_settings

KINDS = "image_folder", "oxford_pets", "inat_json"

# ---- What is read ----
SOURCE: str = ""  # folder of the photos; "" = data/oxford for oxford_pets, else it must be given
DOWNLOAD: bool = False  # oxford_pets: let torchvision fetch it into SOURCE, 800 MB
STAGES: Literal["one", "two"] = "one"  # oxford_pets: one: 37 breeds; two: cat or dog, then breed
TRAIN: str = ""  # inat_json: JSON of the training photos; alone, it is split when first used
VAL: str = ""  # inat_json: JSON of the validation photos

# ---- What becomes of it ----
OUT: str = ""  # new folder; "" = data/oxford_pets, data/oxford_pets_two or data/<source>_petface
CHECKPOINT: str = ""  # best.pt of stage 1: classes it does not know leave the test part
VAL_AS: Literal["test", "val"] = "test"  # what a val part is where there is no test part
LINK: Literal["symbolic", "hard", "copy"] = "symbolic"  # how photos get there
SEED: Seed = 0  # of the parts that are cut from train


def read(kind: str, source: str, s: Settings) -> Found:
    """Read the source, after its download where that is wanted."""
    if kind == "image_folder":
        return read_image_folder(source)
    if kind == "inat_json":
        return read_inat_json(source, s.TRAIN, s.VAL or None)
    if s.DOWNLOAD:
        download_oxford_pets(source)
    return read_oxford_pets(source, s.STAGES)


def describe(found: Found, rows_shown: int = 40, samples_shown: int = 3) -> str:
    """Return a table of the photos per class and part, the notes, and what was left out."""
    counts = Counter((entry.species, entry.part) for entry in found.entries)
    parts, classes = SPLITS if found.parts else ("",), found.classes
    rows = [("class", [part or "photos" for part in parts])]
    rows += [(name, [f"{counts[name, p]:,}" for p in parts]) for name in classes[:rows_shown]]
    if len(classes) > rows_shown:
        rows.append((f"... {len(classes) - rows_shown} more, see sources.csv", []))
    totals = [f"{sum(counts[name, part] for name in classes):,}" for part in parts]
    rows.append((f"all {len(classes)} classes", totals))
    lines = [f"{name[:40]:40s}" + "".join(f"{cell:>9s}" for cell in cells) for name, cells in rows]
    for part in parts:
        if empty := [name for name in classes if not counts[name, part]]:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            lines.append(f"{len(empty)} classes have no photo in {part}: {shown}")
    lines += found.notes
    for reason, num in sorted(Counter(reason for _, reason in found.left_out).items()):
        examples = [what for what, why in found.left_out if why == reason][:samples_shown]
        more = ", ..." if num > samples_shown else ""
        lines.append(f"left out, {reason}: {num:,} ({', '.join(examples)}{more})")
    return "\n".join(lines)


def next_commands(kind: str, out: str, found: Found, s: Settings) -> list[list[str]]:
    """Return the exact commands that use the tree."""
    evaluate = ["inference_engine.py", "evaluate"]
    trainers = ["train_resnet_minority_aug_dynamic.py", "stage2_resnet_multi.py"]
    tree = ["--images-root", f"{out}/images", "--annotations-root", f"{out}/annotations"]
    if kind == "oxford_pets":
        name = "oxford_pets" if s.STAGES == "one" else "oxford_pets_two"
        tree = tree if s.OUT else []
        scripts = {"stage1": trainers[:1], "stage2": trainers[1:], "eval": evaluate}
        return [
            [*words, "--config", f"configs/{folder}/{name}.toml", *tree]
            for folder, words in scripts.items()
            if folder != "stage2" or s.STAGES == "two"
        ]
    run = safe_name(Path(out).name)
    checkpoint = ["--stage1-checkpoint", s.CHECKPOINT or f"runs/{run}/best.pt"]
    commands = [[*evaluate, *checkpoint, *tree, "--out-dir", f"runs/{run}_evaluation"]]
    if not s.CHECKPOINT and ("train" in found.parts or not found.parts):
        commands.insert(0, [trainers[0], *tree, "--run-name", run])
    return commands


def main(argv: Sequence[str] | None = None) -> None:
    s = read_settings(sys.modules[__name__], argv, positional=("SOURCE", " or ".join(KINDS)))
    kind = s.positional[0] if len(s.positional) == 1 else ""
    if kind not in KINDS:
        raise SettingsError(
            f"give one source of {', '.join(KINDS)}, not {' '.join(s.positional)!r}"
        )
    source = s.SOURCE or ("data/oxford" if kind == "oxford_pets" else "")
    for flag, value in {"--source": source, "--train": s.TRAIN or kind != "inat_json"}.items():
        if not value:
            raise SettingsError(f"{flag} is missing; see --help")
    name = f"{safe_name(Path(source).resolve().name)}_petface"
    if kind == "oxford_pets":
        name = "oxford_pets" if s.STAGES == "one" else "oxford_pets_two"  # as in configs/
    out, classes = str(Path(s.OUT or f"data/{name}")), None
    sys.stdout.reconfigure(errors="backslashreplace")  # file names that are no UTF-8
    check_out(Path(out).absolute(), Path(source).absolute())  # before anything is downloaded
    if s.CHECKPOINT:
        from petface.models import checkpoints

        classes = checkpoints.read_stage1(s.CHECKPOINT).classes
    found = read(kind, source, s)
    prepare(found, out, link=s.LINK, seed=s.SEED, checkpoint_classes=classes, val_as=s.VAL_AS)
    print(f"{describe(found)}\n\nnext:")
    for words in next_commands(kind, out, found, s):
        print(f"    python {shlex.join(words)}")
    print(f"\nsource: {found.source}\nfolder: {out}\nphotos: {len(found.entries)}")
    print(f"left_out: {len(found.left_out)}")


if __name__ == "__main__":
    run_script(main)
