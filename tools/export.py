"""Export trained networks as ONNX files: one folder that other runtimes answer without torch.

    python -m tools.export --config configs/export/demo.toml
    python -m tools.export --precision int8        # 8 bits where that keeps the predictions
    python -m tools.export --stage1-checkpoint "" --identity-checkpoint runs/identity/best.pt

OUT holds bundle.json, stage1.onnx, stage2/<species>.onnx and identity.onnx, beside each model its
card in JSON. A model is the network alone: `image` (B, 3, S, S) float32 in [0, 1], RGB -> logits
per head, of identity.onnx `embedding` (B, D) of length 1. The card says how photos are resized,
with a test vector. Each model is compared with its checkpoint on validation photos and refused
where logits differ by more than MAX_LOGIT_DIFFERENCE. int8 is fitted on training photos and kept
only where INT8_AGREEMENT of the predictions stay the same, for every head; the others stay in fp32,
as embeddings do. All commands and classes take the folder in place of the checkpoints.
"""

from __future__ import annotations

import sys
import time
from typing import Literal

from petface.errors import UserError, run_script
from petface.inference.loading import find_specialist
from petface.settings import Fraction, PositiveFloat, Seed, read_settings
from tools.labels import load_as_trained

# ---- What is exported ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"  # "" = the identity network alone
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt
IDENTITY_CHECKPOINT: str = ""  # best.pt of train_identity.py; "" = none
OUT: str = "runs/bundle"

# ---- Photos that it is measured on ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, the one the models were trained with
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
MAX_LOGIT_DIFFERENCE: PositiveFloat = 1e-3  # to torch in fp32; float sums in another order: 1e-5

# ---- int8 ----
PRECISION: Literal["fp32", "int8"] = "fp32"  # int8: a quarter of the size, faster on a CPU
INT8_AGREEMENT: Fraction = 0.99  # least share of fp32's predictions; else the model stays in fp32


def main() -> None:
    switches = {"force": "replace a finished bundle"}
    switches["force_int8"] = "keep int8 models that give too few of the predictions"
    s = read_settings(sys.modules[__name__], switches=switches)
    from petface.export.bundle import write_bundle  # their packages are optional
    from petface.export.model import ExportOptions

    print(s.provenance())
    force_int8 = "force_int8" in s.switches
    if s.PRECISION == "fp32" and force_int8:
        raise UserError("--force-int8 needs --precision int8")
    if not s.STAGE1_CHECKPOINT and not s.IDENTITY_CHECKPOINT:
        raise UserError("nothing to export: give STAGE1_CHECKPOINT or IDENTITY_CHECKPOINT")
    folder = s.own_folder("STAGE2_FOLDER", of="STAGE1_CHECKPOINT")
    dataset = load_as_trained(s, "STAGE1_CHECKPOINT")
    wanted = dataset.catalog.classes if s.STAGE1_CHECKPOINT else ()
    specialists = {name: path for name in wanted if (path := find_specialist(name, folder))}
    if missing := [name for name in wanted if name not in specialists]:
        print(f"no specialist in {folder or 'STAGE2_FOLDER, not given,'} for: {', '.join(missing)}")
    options = ExportOptions(
        precision=s.PRECISION,
        max_logit_difference=s.MAX_LOGIT_DIFFERENCE,
        int8_agreement=s.INT8_AGREEMENT,
        force_int8=force_int8,
        pack=s.PACK,
    )
    start, models = time.perf_counter(), (s.STAGE1_CHECKPOINT, specialists)
    more = {"identity": s.IDENTITY_CHECKPOINT, "force": "force" in s.switches}
    cards = write_bundle(s.OUT, *models, dataset, options, **more).values()
    print(f"models: {len(cards)}\nint8: {sum(card['precision'] == 'int8' for card in cards)}")
    print(f"megabytes: {sum(card['bytes'] for card in cards) / 1e6:.1f}")
    print(f"seconds: {time.perf_counter() - start:.1f}\nbundle: {s.OUT}")


if __name__ == "__main__":
    run_script(main)
