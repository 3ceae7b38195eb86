"""Measure how well a network tells animals apart, beside baselines.

    python -m tools.evaluate_identity runs/identity/best.pt
    python -m tools.evaluate_identity runs/identity/best.pt --splits-file data/PetFace/split

With PetFace's lists: verification.csv, and reidentification.csv against train.csv. Else the same of
the test split: all pairs of one animal and as many of two of its species; one photo of each animal
is the gallery. Writes identity_summary.json, identity_pairs.csv and identity_queries.csv.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from petface.data.dataset import load_dataset
from petface.data.loading import worker_count
from petface.data.pack import image_source
from petface.errors import SettingsError, run_script
from petface.identity import embed
from petface.identity import evaluate as evaluation
from petface.inference.loading import ComputeOptions
from petface.models.backbones import input_rule
from petface.settings import Positive, Seed, read_settings

IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images folder; a folder = official lists
SPLIT_SEED: Seed = 0  # of splits.csv when it is made, and of the lists
SPLIT: Literal["test", "val"] = "test"  # whose animals, where there are no official lists
SPECIES: str | tuple[str, ...] = "all"  # all, one, or a list of some
OUT_DIR: str = ""  # "" = the checkpoint's folder, of the val split val/ within it

# ---- Baselines, each with the points of top-1 that the network gains over it ----
BASELINES: tuple[str, ...] = ()  # other checkpoints, such as a best.pt of stage 2
BASELINE_BACKBONE: str = "resnet18"  # its features, as they came from ImageNet
BASELINE_WEIGHTS: str = ""  # "" = no such baseline; torchvision, timm, or a file
BASELINE_SIZE_PX: Positive = 224

DEVICE: str = "auto"  # auto, cpu, cuda, cuda:1
PRECISION: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
BATCH_SIZE: Positive = 64  # photos at once
NUM_WORKERS: int = -1  # decoding processes; 0 = a thread, -1 = by the number of cores


def main() -> None:
    words = "CHECKPOINT", "best.pt of train_identity.py; of another trainer its features"
    s = read_settings(sys.modules[__name__], positional=words)
    if len(s.positional) > 1:
        raise SettingsError("give one checkpoint; others are BASELINES")
    path = Path((s.positional or ["runs/identity/best.pt"])[0])
    options = ComputeOptions.choose(s.DEVICE, s.PRECISION)
    embedder = embed.load_embedder(path, options)
    named = {"splits_file": s.SPLITS_FILE, "seed": s.SPLIT_SEED}
    named["species"] = None if s.SPECIES == "all" else s.SPECIES
    dataset = load_dataset(s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, **named)
    lists, notes = evaluation.choose_lists(dataset, s.SPLITS_FILE, s.SPLIT, s.SPLIT_SEED)
    print("\n".join(notes), end="\n" * bool(notes))
    others = [embed.load_embedder(other, options) for other in s.BASELINES]
    if s.BASELINE_WEIGHTS:
        rule = input_rule(s.BASELINE_BACKBONE, s.BASELINE_SIZE_PX, "stretch", "imagenet")
        named_backbone = s.BASELINE_BACKBONE, s.BASELINE_WEIGHTS
        others.append(embed.backbone_features(*named_backbone, rule, options))

    def images(of: embed.Embedder) -> evaluation.ImageReader:
        return image_source(dataset.catalog, s.PACK, of.network.preprocessing)

    how = {"batch_size": s.BATCH_SIZE, "num_workers": worker_count(s.NUM_WORKERS)}
    baselines = {other.name: (other, images(other)) for other in others}
    found = evaluation.run(dataset, *lists, embedder, images(embedder), baselines, **how)
    assert found is not None  # this is one process
    out = Path(s.OUT_DIR) if s.OUT_DIR else path.parent / ("" if s.SPLIT == "test" else s.SPLIT)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"network": str(path), "split": s.SPLIT, "data": dataset.fingerprint()}
    summary = evaluation.write_evaluation(out, *found, facts)
    print(evaluation.describe(summary))
    print(f"summary: {out / evaluation.SUMMARY}")


if __name__ == "__main__":
    run_script(main)
