"""Audit a dataset before training on it: what is there, what is broken, what leaks between splits.

    python -m tools.audit --all          # every photo of PetFace; without --all a sample
    python -m tools.audit --config configs/audit/demo.toml

Prints the figures and writes into OUT: audit.html (one page, opens without a network), audit.json,
issues.csv, duplicates.csv and classes.csv. Without --all it looks at SAMPLE photos, spread evenly
over the species; the tree and the labels are always read whole. Photos stand in the page only
--with-photos: a page without them may be passed on where the photos may not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from petface.analysis.audit import describe_audit, make_audit, write_audit
from petface.analysis.duplicates import look_at
from petface.data.sources.petface import scan
from petface.data.splits import sample_evenly
from petface.errors import run_script
from petface.report.tool_pages import write_audit_page
from petface.settings import NonNegative, Seed, read_settings

# ---- Data ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, made if it is not there yet
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
COLUMNS: tuple[str, ...] = ()  # as in stage 2: "cat.breed=Rasse"; then not as in STAGE2_FOLDER
STAGE2_FOLDER: str = "runs/stage2"  # labels are read as its specialists were trained; "" = not

# ---- Audit ----
OUT: str = "runs/audit"  # an earlier audit there is replaced
SAMPLE: NonNegative = 2000  # photos to look at, spread evenly over the species; 0 = all
SAMPLE_SEED: Seed = 0
WITH_PHOTOS: bool = False  # small copies of duplicates and odd photos in the page
WORKERS: int = -1  # decoding processes; 0 = a thread of this one, -1 = one per core


def main() -> None:
    switches = {"all": "look at every photo, whatever SAMPLE says"}
    s = read_settings(sys.modules[__name__], switches=switches)
    from tools.labels import load_as_trained  # a second and a half, that --help does not wait

    out = Path(s.OUT)
    out.mkdir(parents=True, exist_ok=True)
    found = scan(s.IMAGES_ROOT)
    dataset = load_as_trained(s, "IMAGES_ROOT", s.COLUMNS)
    species = dataset.catalog.class_index
    num = (s.SAMPLE if "all" not in s.switches else 0) or len(species)
    places = sample_evenly(species, num, s.SAMPLE_SEED)
    start = time.perf_counter()
    photos = look_at(dataset.catalog, places, s.WORKERS)
    looked_s = time.perf_counter() - start
    audit = make_audit(dataset, found, photos)
    write_audit(out, audit)
    root, page = Path(s.IMAGES_ROOT), out / "audit.html"
    write_audit_page(page, audit, dataset, root, with_photos=s.WITH_PHOTOS)
    print(describe_audit(audit.summary))
    print(f"photos_per_s: {len(places) / looked_s:.0f}\npage: {page}")


if __name__ == "__main__":
    run_script(main)
