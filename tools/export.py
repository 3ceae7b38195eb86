"""Export the two-stage system as ONNX files: one folder that needs neither torch nor this code.

    python -m tools.export --config configs/export/demo.toml
    python -m tools.export --precision int8        # 8 bits where that keeps the answers

OUT holds bundle.json, stage1.onnx and stage2/<species>.onnx, beside each model its card in JSON.
A model takes RGB bytes of any size, (B, H, W, 3), and resizes, scales and normalises them itself;
it gives logits per head. It is compared with its checkpoint on validation photos and refused where
the logits differ by more than MAX_LOGIT_DIFFERENCE. int8 is fitted on training photos and kept only
where it gives INT8_AGREEMENT of the answers on validation photos, for every head; else the model
stays in fp32. The command line of the evaluation takes the folder in place of the checkpoints.
"""

from __future__ import annotations

import sys
import time
from typing import Literal

from petface.data.dataset import load_dataset
from petface.errors import UserError, run_script
from petface.inference.loading import find_specialist
from petface.settings import Fraction, NonNegative, Positive, PositiveFloat, Seed, read_settings

# ---- What is exported ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt
OUT: str = "runs/bundle"
FLOAT_VARIANT: bool = False  # also OUT/float/: the networks alone, for prepared floats

# ---- Photos that it is measured on ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, the one the models were trained with
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
NUM_PARITY: Positive = 512  # validation photos at most, per model
MAX_LOGIT_DIFFERENCE: PositiveFloat = 1e-3  # to torch in fp32; float sums in another order: 1e-5

# ---- int8 ----
PRECISION: Literal["fp32", "int8"] = "fp32"  # int8: a quarter of the size, twice as fast on a CPU
INT8_AGREEMENT: Fraction = 0.99  # least share of fp32's answers; else the model stays in fp32
NUM_CALIBRATION: Positive = 256  # training photos that show the ranges
MAX_FLOAT_LAYERS: NonNegative = 2  # first convolutions left in float where needed; 0 = none
REDUCE_RANGE: bool = True  # weights of 7 bits; False = 8, wrong sums on CPUs without VNNI


def main() -> None:
    s = read_settings(
        sys.modules[__name__],
        switches={
            "force": "replace a finished bundle",
            "force_int8": "keep int8 models that give too few of the answers",
        },
    )
    from petface.export.bundle import write_bundle  # their packages are optional
    from petface.export.model import Wishes

    print(s.provenance())
    dataset = load_dataset(
        s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, splits_file=s.SPLITS_FILE, seed=s.SPLIT_SEED
    )
    found = {name: find_specialist(name, s.STAGE2_FOLDER) for name in dataset.catalog.classes}
    specialists = {name: path for name, path in found.items() if path is not None}
    if missing := [name for name in found if name not in specialists]:
        print(f"no specialist in {s.STAGE2_FOLDER} for: {', '.join(missing)}")
    if s.PRECISION == "fp32" and "force_int8" in s.switches:
        raise UserError("--force-int8 needs --precision int8")
    wishes = Wishes(
        precision=s.PRECISION,
        float_variant=s.FLOAT_VARIANT,
        max_logit_difference=s.MAX_LOGIT_DIFFERENCE,
        num_parity=s.NUM_PARITY,
        int8_agreement=s.INT8_AGREEMENT,
        force_int8="force_int8" in s.switches,
        num_calibration=s.NUM_CALIBRATION,
        max_float_layers=s.MAX_FLOAT_LAYERS,
        reduce_range=s.REDUCE_RANGE,
        pack=s.PACK,
    )
    start = time.perf_counter()
    cards = write_bundle(
        s.OUT,
        s.STAGE1_CHECKPOINT,
        specialists,
        dataset,
        wishes,
        force="force" in s.switches,
    )
    num_int8 = sum(card["precision"] == "int8" for card in cards.values())
    megabytes = sum(card["bytes"] for card in cards.values()) / 1e6
    print(
        f"models: {len(cards)}\nint8: {num_int8}\nmegabytes: {megabytes:.1f}\n"
        f"seconds: {time.perf_counter() - start:.1f}\nbundle: {s.OUT}"
    )


if __name__ == "__main__":
    run_script(main)
