"""Measure how fast, and in how much memory, a tree of PetFace's size is scanned and loaded.

    python -m tools.measure_scan --images 1012934 --folder /tmp/scan

Makes a tree of one-byte files with the dataset's species shares and annotation files, then scans it
in a fresh process and prints, per measurement, the seconds and the peak memory above the memory of
the imports. The tree is removed afterwards unless --keep is given; at full size it holds 1.3
million entries and takes some minutes to make.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from petface.errors import UserError, run_script
from petface.settings import read_flags
from petface.taxonomy import SPECIES_CONFIG

_COLUMNS = {
    "breed": "Breed", "color": "Color", "color1": "Color1", "color2": "Color2", "gender": "Gender",
}  # fmt: skip
_MEASURE = """
import sys, time
from pathlib import Path
from petface.data.dataset import load_dataset
from petface.data.sources.petface import scan
def peak_kib():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])
what, folder = sys.argv[1], Path(sys.argv[2])
base, start = peak_kib(), time.perf_counter()
if what == "scan":
    catalog = scan(folder / "images").catalog
else:
    catalog = load_dataset(folder / "images", folder / "annotations").catalog
seconds = time.perf_counter() - start
print(f"{what}: {seconds:.1f} s, peak {(peak_kib() - base) / 1024:.0f} MiB over the base, "
      f"{len(catalog):,} images of {catalog.num_records:,} records")
"""


def make_tree(folder: Path, num_images: int) -> None:
    """Make `num_images` files in PetFace's shape: its species shares, about four files a record."""
    total_records = sum(config.records for config in SPECIES_CONFIG.values())
    num_records = max(len(SPECIES_CONFIG), round(num_images * total_records / 1_012_934))
    images_left, records_left = num_images, num_records
    for position, (species, config) in enumerate(SPECIES_CONFIG.items()):
        last = position == len(SPECIES_CONFIG) - 1
        share = max(1, round(num_records * config.records / total_records))
        records = max(records_left if last else share, 1)
        for record in range(records):
            record_folder = folder / "images" / species / f"{record:06d}"
            record_folder.mkdir(parents=True)
            num_files = -(-images_left // max(records_left, 1))  # spread what is left evenly
            for image in range(num_files):
                (record_folder / f"{image:02d}.png").write_bytes(b".")
            images_left -= num_files
            records_left -= 1
        write_annotations(folder / "annotations" / f"{species}.csv", species, records)


def write_annotations(path: Path, species: str, num_records: int) -> None:
    """Write random labels with a long tail and the species' share of unknown genders."""
    draw = random.Random(species)
    features = SPECIES_CONFIG[species].features
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["Name", *(_COLUMNS[feature] for feature in features)])
        for record in range(num_records):
            labels = [f"Label {int(draw.paretovariate(0.7))}"[:9] for _ in features[:-1]]
            unknown = draw.random() < SPECIES_CONFIG[species].gender_unknown_frac
            gender = "" if unknown else draw.choice(["Female", "Male"])
            writer.writerow([f"{record:06d}", *labels, gender])


def main() -> None:
    """Make the tree, measure, remove the tree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_012_934, help="number of files to make")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the tree")
    parser.add_argument("--keep", action="store_true", help="leave the tree on disk")
    arguments = read_flags(parser)
    if arguments.folder.exists():
        raise UserError(f"--folder {arguments.folder} exists; name a new one")
    try:
        start = time.perf_counter()
        make_tree(arguments.folder, arguments.images)
        print(f"make: {time.perf_counter() - start:.1f} s", flush=True)
        # twice, because the first load makes and writes the splits and the second reads them
        for what in ("scan", "load_dataset", "load_dataset"):
            command = [sys.executable, "-c", _MEASURE, what, str(arguments.folder)]
            subprocess.run(command, check=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    run_script(main)
