"""Turn photos into embeddings: one row of numbers each, near one another for one animal.

    python -m tools.embed photos --out embeddings.npy    # and embeddings.csv, the photo of a row
    python inference_engine.py identify photo.jpg --gallery embeddings.npy

Photos that cannot be read are left out and listed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from petface.errors import SettingsError, run_script, short  # isort: split

import numpy as np

from petface.data.loading import worker_count
from petface.identity.embed import checked, load_embedder
from petface.identity.gallery import check_place, embed_files, save_embeddings
from petface.inference.loading import ComputeOptions
from petface.inference.predict import find_photos
from petface.settings import Positive, read_settings

CHECKPOINT: str = "runs/identity/best.pt"  # of any trainer here, whose features it takes else
OUT: str = "embeddings.npy"  # (n, D) float32; beside it a .csv with the photo of each row
DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
BATCH_SIZE: Positive = 64  # photos at once
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores


def main() -> None:
    words = "photos", "photo files, and folders of them"
    s = read_settings(sys.modules[__name__], positional=words)
    photos, left_out = find_photos(s.positional)
    if not photos:
        raise SettingsError("no photo to embed: give photo files and folders of them")
    check_place(Path(s.OUT))
    embedder = load_embedder(s.CHECKPOINT, ComputeOptions.choose(s.DEVICE, s.PRECISION))
    how = {"batch_size": s.BATCH_SIZE, "num_workers": worker_count(s.NUM_WORKERS)}
    rows = checked(embed_files(embedder, photos, **how), s.CHECKPOINT)
    good = np.isfinite(rows).all(axis=1)
    for photo in np.array(photos, object)[~good]:
        print(f"left out, cannot be read: {short(photo)}", file=sys.stderr)
    for reason, num in sorted(left_out.items()):
        print(f"left out, {reason}: {num}")
    kept = [photo for photo, is_good in zip(photos, good, strict=True) if is_good]
    save_embeddings(Path(s.OUT), kept, rows[good], embedder.sha256)
    print(f"photos: {len(kept)}\nnumbers: {rows.shape[1]}\nembeddings: {s.OUT}")


if __name__ == "__main__":
    run_script(main)
