"""Compare exported models with their checkpoints on the test part, which chose nothing.

    python -m tools.bench_export --bundle runs/bundle --int8-bundle runs/bundle_int8

For each model a row per way to compute it: torch in fp32, ONNX Runtime in fp32, in int8. Logits and
answers are compared with torch's; accuracy is that of known labels; photos a second are medians of
ROUNDS turns in which all ways take part one after the other. Printed, and written to
results/export_parity_<dataset>_<hardware>.csv. A minute per model on two cores at 224 px.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from petface.data.dataset import load_dataset
from petface.errors import UserError, run_script
from petface.files import write_csv
from petface.inference import onnx_models as exported
from petface.inference.stages import find_specialist
from petface.models.network import Answerer, Network
from petface.settings import Positive, Seed, read_settings
from tools.hardware import hardware_name

# ---- What is compared ----
STAGE1_CHECKPOINT: str = "runs/cnn_folder_224_raw_aug/best.pt"
STAGE2_FOLDER: str = "runs/stage2"  # holds <species>/<species>_best.pt
BUNDLE: str = "runs/bundle"  # in fp32
INT8_BUNDLE: str = ""  # "" = none; its models that stayed in fp32 are left out

# ---- On what ----
IMAGES_ROOT: str = "data/PetFace/images"  # <species>/<record>/<image>
ANNOTATIONS_ROOT: str = "data/PetFace/annotations"  # <species>.csv
SPLITS_FILE: str = ""  # "" = splits.csv beside the images, the one the models were trained with
SPLIT_SEED: Seed = 0  # used when splits.csv is made, never after
PACK: str = ""  # "" = decode the files; auto = a pack beside the images, made once; or its path
MAX_PHOTOS: Positive = 2000  # of the test part, per model

# ---- Speed ----
NUM_RATE: Positive = 64  # photos a turn
ROUNDS: Positive = 5

# ---- Where to ----
OUT: str = ""  # "" = results/export_parity_<DATASET>_<hardware>.csv
DATASET: str = "petface"  # its name in that file's

_COLUMNS = (
    "model", "head", "engine", "precision", "photos", "max_logit_difference", "equal_answers",
    "labels", "accuracy", "img_per_s", "megabytes",
)  # fmt: skip


def main() -> None:
    s = read_settings(sys.modules[__name__])
    from petface.export import parity  # their packages are optional
    from petface.export.sources import read_photos, read_source

    dataset = load_dataset(
        s.IMAGES_ROOT, s.ANNOTATIONS_ROOT, splits_file=s.SPLITS_FILE, seed=s.SPLIT_SEED
    )
    bundles = [folder for folder in (s.BUNDLE, s.INT8_BUNDLE) if folder]
    for folder in bundles:
        if not exported.is_bundle(folder):
            raise UserError(f"{folder} is no bundle; make it with python -m tools.export")
    rows: list[tuple[object, ...]] = []
    for species in (None, *exported.specialists_in(s.BUNDLE)):
        name = species or "stage1"
        path = s.STAGE1_CHECKPOINT if species is None else find_specialist(species, s.STAGE2_FOLDER)
        if path is None:
            raise UserError(f"{s.STAGE2_FOLDER} has no specialist for {species}")
        source = read_source(path, species)
        photos = read_photos(dataset, s.PACK, source, "test", s.MAX_PHOTOS)
        if not len(photos.pixels):
            print(f"{name}: no photo in the test part")
            continue
        torch_network = Network.for_inference(source.model, source.preprocessing, "cpu", "fp32")
        networks: dict[tuple[str, str], Answerer] = {("torch", "fp32"): torch_network}
        megabytes = {("torch", "fp32"): Path(path).stat().st_size / 1e6}
        for folder, precision in zip(bundles, ("fp32", "int8"), strict=False):
            file = exported.find(folder, species)
            model = exported.read(file, species) if file else None
            if model is not None and model.precision == precision:
                networks["onnxruntime", precision] = exported.load(model)
                megabytes["onnxruntime", precision] = model.path.stat().st_size / 1e6
        answered = {
            way: parity.answer(lambda x, n=network: (n.answer_pixels(x), None), photos.pixels)
            for way, network in networks.items()
        }
        rates = parity.rates(networks, photos.pixels[: s.NUM_RATE], s.ROUNDS)
        heads = list(source.heads)
        exact = answered["torch", "fp32"]
        for way, found in answered.items():
            equal = parity.differences(found, exact, heads)
            right = parity.accuracies(found, photos.labels, heads)
            for head in heads:
                accuracy = right[head]
                rows.append(
                    (
                        name,
                        head,
                        *way,
                        len(photos.pixels),
                        f"{equal[head]['max_logit_difference']:.2g}",
                        f"{equal[head]['equal']:.4f}",
                        int((photos.labels[head] >= 0).sum()),
                        "" if accuracy is None else f"{accuracy:.4f}",
                        f"{rates[way]:.1f}",
                        f"{megabytes[way]:.1f}",
                    )
                )
                print("  ".join(f"{cell!s:<12}" for cell in rows[-1]), flush=True)
    hardware = hardware_name(torch.device("cpu"))
    out = Path(s.OUT or f"results/export_parity_{s.DATASET}_{hardware}.csv")
    write_csv(out, _COLUMNS, rows)
    print(f"rows: {len(rows)}\ntable: {out}")


if __name__ == "__main__":
    run_script(main)
