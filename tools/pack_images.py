"""Decode and resize every image once, into one file that training and evaluation read instead.

    python -m tools.pack_images            # PetFace at 224 px: 152 GB
    python -m tools.pack_images --check    # compare a finished pack with its checksums

The pack lies beside the images folder, where `PACK = "auto"` of the trainers and of the evaluation
finds it. Packing checks free disk space first and resumes after an interruption. Images that cannot
be read keep their status; a pack is refused once an image was added, removed or changed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

from petface.data.images import Preprocessing
from petface.data.loading import worker_count
from petface.data.pack import PackedImages, make_pack, pack_path
from petface.data.sources.petface import scan
from petface.errors import run_script
from petface.settings import Positive, read_settings

# ---- What is packed ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
IMAGE_SIZE_PX: Positive = 224  # both sides, as in the trainers
RESIZE_RULE: Literal["stretch", "center_crop", "letterbox"] = "stretch"

# ---- Where and how ----
OUT: str = ""  # "" = pack_<size>_<rule>.bin beside the images folder
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores


def main() -> None:
    switches = {"check": "compare a finished pack with its checksums"}
    s = read_settings(sys.modules[__name__], switches=switches)
    catalog, rule = scan(s.IMAGES_ROOT).catalog, Preprocessing(s.IMAGE_SIZE_PX, s.RESIZE_RULE)
    path = Path(s.OUT) if s.OUT else pack_path(s.IMAGES_ROOT, rule)
    start = time.perf_counter()
    if "check" not in s.switches:
        make_pack(path, catalog, rule, num_workers=worker_count(s.NUM_WORKERS))
    pack = PackedImages(path, catalog, rule)
    if "check" in s.switches:
        pack.check()
    print(f"images: {len(catalog)}\nunreadable: {pack.num_unreadable}")
    print(f"gigabytes: {path.stat().st_size / 1e9:.3f}")
    print(f"seconds: {time.perf_counter() - start:.1f}\npack: {path}")


if __name__ == "__main__":
    run_script(main)
