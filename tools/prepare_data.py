"""Lay a source of photos out as a PetFace tree, so that both trainers and the evaluation take it.

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
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from petface.data.preparing import cut_parts, lay_out, settle_parts
from petface.data.sources.entries import PARTS, Found, safe_name
from petface.data.sources.image_folder import read_image_folder
from petface.data.sources.inat_json import read_inat_json
from petface.data.sources.layout import LINKS, Photo, check_out, name_photos
from petface.data.sources.oxford_pets import STAGES, download_oxford_pets, read_oxford_pets
from petface.errors import SettingsError, run_script
from petface.settings import read_flags

COMMANDS = {
    "image_folder": "folders of classes, alone or below train, val and test",
    "oxford_pets": "Oxford-IIIT Pets, 37 breeds of cats and dogs; the official test part stays",
    "inat_json": "iNaturalist's JSON files and their photos",
}
OXFORD_OUT = {"one": "data/oxford_pets", "two": "data/oxford_pets_two"}  # as in configs/
ROWS_SHOWN = 40  # classes in the printed table
SAMPLES_SHOWN = 3  # of each reason


class _Parser(ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see --help")


def read_arguments(argv: Sequence[str]) -> Namespace:
    """Read the command and its flags."""
    command = argv[0] if argv else ""
    if command in ("-h", "--help", ""):
        listed = "\n".join(f"    {name:14s}{text}" for name, text in COMMANDS.items())
        print(f"{__doc__}\nsources; each has its own --help:\n{listed}")
        sys.exit(0 if command else SettingsError.exit_code)
    if command not in COMMANDS:
        raise SettingsError(f"unknown source {command!r}; there are: {', '.join(COMMANDS)}")
    parser = _Parser(
        prog=f"python -m tools.prepare_data {command}",
        description=f"{COMMANDS[command]}\n\n{__doc__}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    if command == "oxford_pets":
        add("--source", default="data/oxford", help="has images/ and annotations/ (%(default)s)")
        add("--stages", choices=STAGES, default="one", help="one: breeds; two: cat/dog, then breed")
        add("--download", choices=("true", "false"), default="false", nargs="?", const="true",
            help="let torchvision fetch it into --source, 800 MB")  # fmt: skip
        add("--out", help=f"new folder ({OXFORD_OUT['one']} or {OXFORD_OUT['two']})")
    else:
        add("--source", help="the folder that file_name is below" if command == "inat_json" else
            "holds the class folders, or train, val and test")  # fmt: skip
        add("--out", help="new folder (data/<name of the source>_petface)")
        add("--checkpoint", help="best.pt of stage 1: classes it does not know leave the test part")
        add("--val-as", choices=("test", "val"), default="test",
            help="what a val part is where there is no test part (%(default)s)")  # fmt: skip
    if command == "inat_json":
        add("--train", help="JSON of the training photos; alone, it is split when first used")
        add("--val", help="JSON of the validation photos")
    add("--link", choices=LINKS, default="symbolic", help="how photos get there (%(default)s)")
    add("--seed", type=int, default=0, help="of the parts that are cut from train (%(default)s)")
    asked = read_flags(parser, argv[1:])
    asked.command = command
    for flag in ("source", "train"):
        if getattr(asked, flag, "") is None:
            raise SettingsError(f"--{flag} is missing; see --help")
    if not 0 <= asked.seed < 2**32:
        raise SettingsError(f"--seed {asked.seed}: give a whole number from 0 to {2**32 - 1}")
    if not asked.out:
        own = f"data/{safe_name(Path(asked.source).resolve().name)}_petface"
        asked.out = OXFORD_OUT[asked.stages] if command == "oxford_pets" else own
    asked.out = str(Path(asked.out))
    return asked


def find(asked: Namespace) -> Found:
    """Read the source, after its download where that is asked for."""
    if asked.command == "image_folder":
        return read_image_folder(asked.source)
    if asked.command == "inat_json":
        return read_inat_json(asked.source, asked.train, asked.val)
    if asked.download == "true":
        download_oxford_pets(asked.source)
    return read_oxford_pets(asked.source, asked.stages)


def classes_of(checkpoint: str | None) -> tuple[str, ...] | None:
    """Name the classes of a stage 1 checkpoint."""
    if checkpoint is None:
        return None
    from petface.models import checkpoints

    return checkpoints.read_stage1(checkpoint).classes


def describe(found: Found, photos: Sequence[Photo]) -> str:
    """Lay out a table of the photos per class and part, what was left out, and the notes."""
    counts: Counter[tuple[str, str]] = Counter()
    for photo in photos:
        counts[photo.entry.species, photo.entry.part] += 1
    classes = sorted({species for species, _ in counts})
    columns = PARTS if any(part for _, part in counts) else ("",)
    width = max(len("all 99999 classes"), *(min(len(name), 40) for name in classes))
    rows = [("class", [part or "photos" for part in columns])]
    rows += [
        (name, [f"{counts[name, part]:,}" for part in columns]) for name in classes[:ROWS_SHOWN]
    ]
    if len(classes) > ROWS_SHOWN:
        rows.append((f"... {len(classes) - ROWS_SHOWN} more, see sources.csv", []))
    totals = [sum(counts[name, part] for name in classes) for part in columns]
    rows.append((f"all {len(classes)} classes", [f"{total:,}" for total in totals]))
    lines = [f"{name[:40]:{width}s}" + "".join(f"{cell:>9s}" for cell in row) for name, row in rows]
    for part, total in zip(columns, totals, strict=True):
        empty = [name for name in classes if not counts[name, part]]
        if not total:
            lines.append(f"the {part} part is empty")
        elif empty:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            lines.append(f"{len(empty)} classes have no photo in {part}: {shown}")
    lines += found.notes
    for reason, num in sorted(found.reasons().items()):
        first = [what for what, why in found.left_out if why == reason][:SAMPLES_SHOWN]
        lines.append(
            f"left out, {reason}: {num:,} ({', '.join(first)}{', ...' * (num > SAMPLES_SHOWN)})"
        )
    return "\n".join(lines)


def next_commands(asked: Namespace, has_train: bool) -> list[str]:
    """Give the exact commands that use the tree."""
    trainer, specialists = "train_resnet_minority_aug_dynamic.py", "stage2_resnet_multi.py"
    images, annotations = f"{asked.out}/images", f"{asked.out}/annotations"
    tree = ["--images-root", images, "--annotations-root", annotations]
    if asked.command == "oxford_pets":
        name = Path(OXFORD_OUT[asked.stages]).name
        scripts = [("stage1", [trainer]), ("eval", ["inference_engine.py", "evaluate"])]
        scripts[1:1] = [("stage2", [specialists])] * (asked.stages == "two")
        tree = tree if asked.out != OXFORD_OUT[asked.stages] else []
        commands = [
            [*words, "--config", f"configs/{folder}/{name}.toml", *tree]
            for folder, words in scripts
        ]
        return [f"python {shlex.join(command)}" for command in commands]
    run_name = safe_name(Path(asked.out).name)
    checkpoint = asked.checkpoint or f"runs/{run_name}/best.pt"
    out_dir = ["--out-dir", f"runs/{run_name}_evaluation"]
    commands = [
        ["inference_engine.py", "evaluate", "--stage1-checkpoint", checkpoint, *tree, *out_dir]
    ]
    if has_train and not asked.checkpoint:
        commands.insert(0, [trainer, *tree, "--run-name", run_name])
    return [f"python {shlex.join(command)}" for command in commands]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the source, settle its parts, write the tree, say what comes next."""
    asked = read_arguments(sys.argv[1:] if argv is None else argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # file names that are no UTF-8
    started = time.perf_counter()
    out = Path(asked.out).absolute()
    check_out(out, Path(asked.source).absolute())
    known = classes_of(getattr(asked, "checkpoint", None))
    found = find(asked)
    settle_parts(found, checkpoint_classes=known, val_as=getattr(asked, "val_as", "val"))
    photos, cut = cut_parts(name_photos(found.entries), asked.seed)
    found.notes += cut
    lay_out(found, photos, out, link=asked.link, seed=asked.seed)
    print(f"{describe(found, photos)}\n\nnext:")
    parts = {photo.entry.part for photo in photos}
    print("\n".join(f"    {line}" for line in next_commands(asked, bool(parts & {"train", ""}))))
    print(f"\nsource: {found.source}\nfolder: {asked.out}\nphotos: {len(photos)}")
    print(f"left_out: {len(found.left_out)}\nseconds: {time.perf_counter() - started:.1f}")


if __name__ == "__main__":
    run_script(main)
