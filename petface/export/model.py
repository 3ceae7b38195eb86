"""Export one checkpoint: its network as an ONNX graph, its card, and what was measured."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from petface.data import images
from petface.data.dataset import Dataset, sample_places, species_of_records
from petface.data.fingerprint import contaminated, hashes_of, seen_by, to_json
from petface.data.images import Preprocessing, normalise
from petface.data.loading import OK, even_slices
from petface.data.pack import image_source
from petface.data.splits import TRAIN
from petface.errors import UserError
from petface.evaluation.details import class_numbers, share
from petface.export.int8 import quantise
from petface.files import sha256_of_file
from petface.inference import onnx_models
from petface.inference.loading import reading_of
from petface.inference.onnx_models import IDENTITY, INPUT, OnnxNetwork
from petface.models import checkpoints, layouts
from petface.models.checkpoints import Checkpoint, Described
from petface.models.embedding import IdentityCheckpoint, read_identity
from petface.models.network import Network, Outputs

Heads = Mapping[str, Sequence[str]]  # the classes of each
OPSET = 18  # the lowest that torch's exporter writes by itself
IR_VERSION = 8  # the lowest that holds it: older runtimes refuse a newer one
_PACKAGES = ("torch", "onnx", "onnxruntime", "onnxscript")
RUNTIMES = ("ONNX Runtime 1.17 and 1.32", "OpenVINO 2026.4", "OpenCV 5.0", "ONNX Runtime Web 1.30")
_RESIZING = {
    "stretch": "both sides to S px, whatever their ratio",
    "center_crop": "the short side to S px, the central square kept",
    "letterbox": "the long side to S px, centred on black",
}
_FILTER = (
    "bilinear with antialiasing on uint8 (Pillow's BILINEAR, as torchvision's Resize of PIL "
    "images), only where the photo has not this size; then divided by 255"
)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export; the constants of tools/export.py explain each."""

    precision: str = "fp32"
    max_logit_difference: float = 1e-3
    num_parity: int = 512  # validation photos at most, per model
    int8_agreement: float = 0.99
    force_int8: bool = False
    num_calibration: int = 256  # training photos that show the ranges of int8
    pack: str = ""


def export_model(
    path: str | Path,
    species: str | None,
    dataset: Dataset,
    options: ExportOptions,
    is_identity: bool = False,
) -> tuple[bytes, dict[str, Any]]:
    """Export stage 1 (`species` None), a specialist or an identity network; return file and card.

    It is measured on validation photos, on training photos where there are none. `UserError` where
    the logits differ by more than `max_logit_difference` from the checkpoint's. An identity network
    stays in float32: its threshold was not found for 8 bits.
    """
    path = Path(path)
    checkpoint = _read(path, species, dataset, is_identity)
    read = partial(read_photos, dataset, options.pack, species, checkpoint)
    for split in ("val", "train"):
        photos, places = read(split, options.num_parity)
        if len(photos):
            break
    else:
        raise UserError(f"{path}: the dataset has no photo to measure it on")
    rule, heads = checkpoint.preprocessing, list(checkpoint.heads)
    torch_network = Network.for_inference(checkpoint.model, rule, "cpu", "fp32")  # folds BatchNorm
    exact = torch_network.answer_pixels(photos)
    graph, precision = network_graph(checkpoint.model, rule, heads), "fp32"
    answered = OnnxNetwork(graph.SerializeToString(), checkpoint).answer_pixels(photos)
    found = _parity(path, answered, exact, checkpoint, options.max_logit_difference)
    measured: dict[str, Any] = {
        "parity": {"num_photos": len(photos), "heads": found, "part": split},
        "contaminated": _contaminated(dataset, species, checkpoint),
    }
    if options.precision == "int8" and not is_identity:
        train, _ = read("train", options.num_calibration)
        if not len(train):
            raise UserError(f"{path}: the dataset has no training photo to quantise it by")
        small = quantise(graph, train)
        rounded = OnnxNetwork(small.SerializeToString(), checkpoint).answer_pixels(photos)
        verdict = _judge(differences(rounded, exact, heads), split == "val", options)
        accuracy = {
            name: accuracies(logits, dataset, species, checkpoint.heads, places)
            for name, logits in (("fp32", exact), ("int8", rounded))
        }
        measured["int8"] = {**verdict, "accuracy": accuracy, "num_calibration": len(train)}
        if verdict["kept"]:
            graph, precision = small, "int8"
    content, about = _finish(graph, path, species, checkpoint, precision)
    card = {
        **about,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "data": to_json(checkpoint.data),
        "labels": reading_of(species, path) if species else {},
        "test_vector": _test_vector(OnnxNetwork(content, checkpoint), heads),
        "measured": measured,
    }
    onnx_models.check_model(path, content, card)
    return content, card


def _read(path: Path, species: str | None, dataset: Dataset, is_identity: bool) -> Checkpoint:
    if is_identity:
        return read_identity(path, checkpoints.load(path))
    if species is None:
        return checkpoints.read_stage1(path)
    names = getattr(dataset.annotations.get(species), "vocabularies", {})
    return layouts.read_stage2(path, species, lambda: names)


def read_photos(
    dataset: Dataset, pack: str, species: str | None, model: Described, split: str, most: int
) -> tuple[Tensor, np.ndarray]:
    """Draw a stratified sample of a split for stage 1 (`species` None) or a specialist.

    At most `most` photos, always the same ones; those that can be read, (N, S, S, 3) uint8, and
    their places in the catalog (N,).
    """
    rule = model.preprocessing
    places = sample_places(dataset, split, species, most)
    reader = image_source(dataset.catalog, pack, rule)
    found = [reader.read(part) for part in even_slices(places, 32)]
    none = torch.empty(0, rule.size_px, rule.size_px, 3, dtype=torch.uint8)
    status = np.concatenate([np.empty(0, np.uint8), *(item.status for item in found)])
    return torch.cat([none, *(item.arrays[0] for item in found)]), places[status == OK]


def accuracies(
    outputs: Outputs, dataset: Dataset, species: str | None, heads: Heads, places: np.ndarray
) -> dict[str, float | None]:
    """Return the accuracy of each head on the photos with a known label; None without any."""
    rows, columns = places, {"species": dataset.catalog.class_index}
    listed: Heads = {"species": dataset.catalog.classes}
    if species is not None:
        images_of, columns = dataset.image_labels(species)
        rows = np.searchsorted(images_of, places)
        listed = {head: dataset.annotations[species].vocabularies[head] for head in columns}
    found = dict[str, float | None].fromkeys(heads)
    for (head, names), logits in zip(heads.items(), outputs, strict=True):
        if head in columns:
            true = class_numbers([*listed[head], ""], names)[columns[head][rows]]
            found[head] = share(logits.argmax(dim=1).numpy()[true >= 0] == true[true >= 0])
    return found


def _contaminated(dataset: Dataset, species: str | None, checkpoint: Checkpoint) -> str:
    """Count the validation and test records that the network learnt from, in words; "" for none."""
    if checkpoint.data is None:
        return "not known: the checkpoint does not say what it learnt from"
    own = dataset.record_split != TRAIN
    if species is not None:
        own &= species_of_records(dataset.catalog) == species
    marked = seen_by(checkpoint.data, hashes_of(dataset)[own], chosen=False)
    return contaminated(int(marked.sum()), len(marked)) if marked.any() else ""


class _Normalised(nn.Module):
    """A network behind its normalisation: floats in [0, 1] -> logits of each head, in a tuple."""

    def __init__(self, model: nn.Module, rule: Preprocessing) -> None:
        super().__init__()
        self.model, self.rule = model, rule

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out = self.model(normalise(image, self.rule.mean, self.rule.std))
        return (out,) if isinstance(out, Tensor) else tuple(out)


def network_graph(model: nn.Module, rule: Preprocessing, heads: Sequence[str]) -> ModelProto:
    """Export a model, BatchNorm folded: `INPUT` (B, 3, S, S) float32 in [0, 1] -> logits a head."""
    # A network that lies channels last is exported with a dozen operators that change nothing.
    module = _Normalised(model, rule).eval().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about versions of its own parts
        program: Any = torch.onnx.export(
            module,
            (torch.zeros(2, 3, rule.size_px, rule.size_px),),
            input_names=[INPUT],
            output_names=list(heads),
            dynamic_shapes=({0: torch.export.Dim("B")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph: ModelProto = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # the paths of this machine are among them
    for entries in (graph.graph.value_info, graph.graph.metadata_props, graph.metadata_props):
        del entries[:]
    return graph


def differences(one: Outputs, other: Outputs, heads: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compare logits per head: the largest difference, and the share of equal predictions."""
    return {
        head: {
            "max_logit_difference": float((a - b).abs().max()),
            "equal": float((a.argmax(dim=1) == b.argmax(dim=1)).double().mean()),
        }
        for head, a, b in zip(heads, one, other, strict=True)
    }


def _parity(
    path: Path, answered: Outputs, exact: Outputs, checkpoint: Checkpoint, most: float
) -> dict[str, dict[str, Any]]:
    """Return the `differences` from a checkpoint; `UserError` where one is more than `most`."""
    found = differences(answered, exact, list(checkpoint.heads))
    if isinstance(checkpoint, IdentityCheckpoint):  # what counts is how near two photos are
        moved = (answered[0] @ answered[0].T - exact[0] @ exact[0].T).abs().max()
        found["embedding"]["max_similarity_difference"] = float(moved)
        del found["embedding"]["equal"]
    for head, values in found.items():
        largest = values["max_logit_difference"]
        if not largest <= most:  # NaN is refused, too
            raise UserError(
                f"{path}: logits of head {head} differ by {largest:.3g} from torch's, more than "
                f"MAX_LOGIT_DIFFERENCE = {most:g}; nothing was exported"
            )
    return found


def _judge(found: Mapping[str, Any], may_judge: bool, options: ExportOptions) -> dict[str, Any]:
    """Judge int8 by its `differences`: "kept" where every head agrees often enough, or by force."""
    equal = {head: one["equal"] for head, one in found.items()}
    agrees = may_judge and min(equal.values()) >= options.int8_agreement
    return {
        "kept": agrees or options.force_int8,
        "forced": options.force_int8 and not agrees,
        "wanted_agreement": options.int8_agreement,
        "agreement": equal,
        "max_logit_difference": {h: one["max_logit_difference"] for h, one in found.items()},
    }


def _finish(
    model: ModelProto, path: Path, species: str | None, checkpoint: Checkpoint, precision: str
) -> tuple[bytes, dict[str, Any]]:
    """Write the metadata into a model; return its bytes, and the metadata for its card."""
    rule, side = checkpoint.preprocessing, checkpoint.preprocessing.size_px
    kind, answer, more = "stage1" if species is None else "stage2", "logits", dict[str, Any]()
    if isinstance(checkpoint, IdentityCheckpoint):
        kind, answer = IDENTITY, "of length 1: products are similarities"
        fitted = {name: getattr(checkpoint, name) for name in ("threshold", "false_match_rate")}
        more = {"matching": fitted}
    about = {
        "format": onnx_models.FORMAT,
        "kind": kind,
        "species": species,
        "backbone": str(checkpoint.architecture),
        "precision": precision,
        "heads": {head: list(names) for head, names in checkpoint.heads.items()},
        "sources": {head: checkpoint.sources[head] for head in checkpoint.heads},
        "preprocessing": rule.to_dict(),
        "resizing": f"{_RESIZING[rule.resize]}, S = {side}; {_FILTER}",
        "calibration": {
            head: asdict(fitted)
            for head, fitted in checkpoint.calibration.items()
            if head in checkpoint.heads
        },
        "inputs": {INPUT: f"float32 (B, 3, {side}, {side}), RGB in [0, 1]; normalised inside"},
        "outputs": {
            head: f"float32 (B, {len(names)}), {answer}" for head, names in checkpoint.heads.items()
        },
        "checkpoint": {"name": path.name, "sha256": sha256_of_file(path)},
        "opset": OPSET,
        "runtimes": [*RUNTIMES],  # tried: the same predictions, logits within 5e-6
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        **more,
    }
    model.ir_version = IR_VERSION
    del model.opset_import[:]  # the quantiser names a dozen sets that it makes no use of
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.producer_name = "petface"
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True), about


def _test_vector(network: OnnxNetwork, heads: Sequence[str]) -> dict[str, Any]:
    """Answer a made-up photo, for others to check their resizing and their runtime with."""
    row, column, channel = np.ogrid[:60, :80, :3]
    photo = ((5 * row + 3 * column + 85 * channel) % 256).astype(np.uint8)
    rule = network.preprocessing
    resized = images.resize(photo, rule.size_px, rule.resize)
    logits = network.answer_pixels(torch.from_numpy(resized)[None])
    places = [(rule.size_px * a // 4, rule.size_px * b // 4) for a, b in ((2, 2), (1, 3), (2, 1))]
    return {
        "photo": {
            "shape": list(photo.shape),
            "value": "(5 row + 3 column + 85 channel) mod 256, uint8 RGB",
            "sha256": hashlib.sha256(photo.tobytes()).hexdigest(),
        },
        "resized": {
            "sha256": hashlib.sha256(resized.tobytes()).hexdigest(),
            "pixels": [{"row": y, "column": x, "rgb": resized[y, x].tolist()} for y, x in places],
        },
        "logits": {head: row[0].tolist() for head, row in zip(heads, logits, strict=True)},
    }
