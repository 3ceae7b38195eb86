"""Exported models: an ONNX file and its card, checked before anything is asked of them.

A bundle is a folder that holds the whole two-stage system: `bundle.json`, `stage1.onnx`,
`stage2/<species>.onnx`, and beside each model its card of the same name in JSON. The card repeats
the model's metadata and adds what belongs to the file: its SHA-256, its size, what was measured. A
damaged file, a card that does not belong to it, weights in a second file and operators outside the
ONNX standard are refused; nothing but those operators is ever computed.

Optional: `INSTALL_LINE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petface.calibration import HeadCalibration
from petface.data.images import Preprocessing
from petface.errors import UserError, install_line
from petface.models import checkpoints
from petface.models.checkpoints import CheckpointError
from petface.models.network import Outputs

FORMAT = 1
BUNDLE = "bundle.json"
SUFFIX = ".onnx"
GUARD_SCORE = "guard_score"  # the output beside the heads of a stage 1 with a guard
INSTALL_LINE = install_line("export")

# What a card and the model's metadata both hold; in the model each entry is JSON text.
METADATA = (
    "format", "kind", "species", "backbone", "precision", "heads", "sources", "preprocessing",
    "calibration", "guard_threshold", "inputs", "outputs", "checkpoint", "opset", "packages",
)  # fmt: skip
_CPU_PIXELS = 8 * 224 * 224  # at once: what passes between layers stays in the cache
_AGAIN = "copy the whole bundle again, or export again with python -m tools.export"
_UPDATE = "update PetFace, or export again"


@dataclass(frozen=True)
class Exported:
    """A checked model: `heads[name][k]` names logit k; heads stand in the order of the outputs.

    `sources[head]` says where its names came from, as in a checkpoint. Of a photo whose
    `GUARD_SCORE` lies below `guard_threshold` the guard says that it shows no known animal; None
    for a model without a guard.
    """

    path: Path
    kind: str  # "stage1" or "stage2"
    species: str | None  # of a specialist
    heads: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    calibration: dict[str, HeadCalibration]
    preprocessing: Preprocessing
    backbone: str
    guard_threshold: float | None
    precision: str  # "fp32" or "int8"
    sha256: str  # of the ONNX file

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Give the fitted temperature of each head, 1.0 where nothing was fitted."""
        fitted = [self.calibration.get(head) for head in self.heads]
        return tuple(entry.temperature if entry else 1.0 for entry in fitted)


def is_bundle(path: str | Path) -> bool:
    """Tell whether a folder holds a finished bundle."""
    return Path(path, BUNDLE).is_file()


def find(folder_or_file: str | Path, species: str | None) -> Path | None:
    """Find stage 1 (`species` None) or a specialist: in a bundle, or the ONNX file itself.

    None where the bundle has no such specialist, or where the path is neither.
    """
    path = Path(folder_or_file)
    if path.suffix == SUFFIX:
        return path if path.is_file() else None
    if not is_bundle(path):
        return None
    name = "stage1.onnx" if species is None else f"stage2/{species}.onnx"
    return path / name if name in _read_bundle(path) else None


def specialists_in(bundle: str | Path) -> list[str]:
    """List the species that a bundle has a specialist for."""
    listed = [Path(name) for name in _read_bundle(Path(bundle))]
    return [p.stem for p in listed if p.parent == Path("stage2") and p.suffix == ".onnx"]


def read(path: str | Path, species: str | None = None) -> Exported:
    """Check stage 1 (`species` None) or a specialist and its card, and give what the card says.

    `CheckpointError` with file, reason and way out for anything that does not fit; where the file
    lies in a bundle, what the bundle lists must fit too.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    for file in (path, card_path):
        if not file.is_file():
            what = "no such file" if file == path else "the card of an exported model is missing"
            raise CheckpointError(file, what, _AGAIN)
    content, card_text = path.read_bytes(), card_path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    _check_bundle(path, {path: digest, card_path: hashlib.sha256(card_text).hexdigest()})
    card = _json_table(card_path, card_text)
    number = card.get("format")
    if not isinstance(number, int) or number < 1:
        raise CheckpointError(card_path, "is not the card of an exported model", _AGAIN)
    if number > FORMAT:
        raise CheckpointError(card_path, f"has format {number}, newer than {FORMAT}", _UPDATE)
    if card.get("sha256") != digest:
        raise CheckpointError(path, "checksum is not the one in its card", _AGAIN)
    _check_model(path, content, card)
    return _described(path, card, digest, species)


def _read_bundle(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of each file of a bundle."""
    path = folder / BUNDLE
    table = _json_table(path, path.read_bytes())
    number, listed = table.get("format"), table.get("files")
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(path, f"has format {number}, newer than {FORMAT}", _UPDATE)
    if not isinstance(number, int) or not isinstance(listed, dict):
        raise CheckpointError(path, "does not list the files of a bundle", _AGAIN)
    return {str(name): str(digest) for name, digest in listed.items()}


def _check_bundle(path: Path, found: Mapping[Path, str]) -> None:
    """Hold files against the bundle around them, where they lie in one."""
    folder = next((f for f in list(path.absolute().parents)[:3] if is_bundle(f)), None)
    if folder is None:
        return
    listed = _read_bundle(folder)
    for file, digest in found.items():
        name = file.absolute().relative_to(folder).as_posix()
        if name not in listed:
            raise CheckpointError(file, f"is not among the files of {folder / BUNDLE}", _AGAIN)
        if listed[name] != digest:
            raise CheckpointError(file, f"checksum is not the one in {folder / BUNDLE}", _AGAIN)


def _json_table(path: Path, text: bytes) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except ValueError as error:  # bytes that are no UTF-8 are among them
        raise CheckpointError(path, f"not valid JSON ({error})", _AGAIN) from error
    if not isinstance(table, dict):
        raise CheckpointError(path, f"holds a {type(table).__name__}, not a table", _AGAIN)
    return table


def _check_model(path: Path, content: bytes, card: Mapping[str, Any]) -> None:
    """Refuse a model that says other things than its card, or is more than one file of ONNX."""
    onnx = _import("onnx")
    try:
        model = onnx.ModelProto.FromString(content)
        own = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    except Exception as error:  # the parser's own type is not part of its interface
        raise CheckpointError(path, f"not an ONNX file of ours ({error})", _AGAIN) from error
    if any(name not in own or own[name] != card.get(name) for name in METADATA):
        raise CheckpointError(path, "its metadata and its card say different things", _AGAIN)
    if {entry.domain for entry in model.opset_import} - {"", "ai.onnx"} or model.functions:
        raise CheckpointError(path, "has operators outside the ONNX standard", _AGAIN)
    if any(map(onnx.external_data_helper.uses_external_data, _tensors(model.graph))):
        raise CheckpointError(path, "keeps weights in a second file", _AGAIN)


def _tensors(graph: Any) -> list[Any]:
    """List every stored tensor of a graph and of the graphs inside its nodes."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] * attribute.HasField("t") + list(attribute.tensors)
            for inner in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                found += _tensors(inner)
    return found


def _described(path: Path, card: dict[str, Any], digest: str, species: str | None) -> Exported:
    """Read the entries of a card whose file was checked."""
    kind, owner = card["kind"], card["species"]
    if species is None and kind != "stage1":
        raise CheckpointError(path, f"is a specialist for {owner}, not a stage 1")
    if species is not None and (kind, owner) != ("stage2", species):
        what = f"a specialist for {owner}" if kind == "stage2" else "a stage 1"
        raise CheckpointError(path, f"is {what}, not a specialist for {species}")
    if "pixels" not in card["inputs"]:
        raise CheckpointError(
            path, "takes prepared floats, not pixels: it is for other programs", "use its neighbour"
        )
    try:
        return Exported(
            path,
            kind,
            owner,
            {head: tuple(map(str, names)) for head, names in card["heads"].items()},
            dict(card["sources"]),
            checkpoints.read_calibration(path, card),
            Preprocessing.from_dict(card["preprocessing"]),
            card["backbone"],
            card["guard_threshold"],
            card["precision"],
            digest,
        )
    except (UserError, AttributeError, TypeError) as error:
        raise CheckpointError(path.with_suffix(".json"), f"makes no sense: {error}") from error


class OnnxNetwork:
    """A model ready to answer, with the interface of `network.Answerer`; see `load`."""

    def __init__(self, exported: Exported, session: Any) -> None:
        self.preprocessing, self.temperatures = exported.preprocessing, exported.temperatures
        self.precision = exported.precision
        self._session = session
        self._names = list(exported.heads)
        self._has_guard = exported.guard_threshold is not None
        self._names += [GUARD_SCORE] * self._has_guard
        on_cpu = session.get_providers()[0] == "CPUExecutionProvider"
        most = max(1, _CPU_PIXELS // exported.preprocessing.size_px**2)
        self._rows = most if on_cpu else None

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, H, W, 3) uint8 -> (B, K) float32 logits per head, on the CPU.

        Of any height and width: the model resizes what has not its size, by its own rule.
        """
        return self.logits_and_scores(pixels)[0]

    def logits_and_scores(self, pixels: Tensor) -> tuple[Outputs, Tensor | None]:
        """Do what `answer_pixels` does, and give the guard's (B,) float64 scores beside it; None
        without a guard.
        """
        most = min(len(pixels), self._rows or len(pixels))
        parts = [
            self._session.run(self._names, {"pixels": part.contiguous().numpy()})
            for part in pixels.tensor_split(-(-len(pixels) // most))
        ]
        columns = [
            torch.cat([*map(torch.from_numpy, column)]) for column in zip(*parts, strict=True)
        ]
        scores = columns.pop() if self._has_guard else None
        return tuple(columns), scores


def load(exported: Exported, device: str = "cpu") -> OnnxNetwork:
    """Make a checked model ready to answer, on the GPU where one is wanted and can be had.

    The bytes that were checked are the ones that are loaded; `CheckpointError` where the file was
    changed in between.
    """
    ort = _import("onnxruntime")
    ort.disable_telemetry_events()
    content = exported.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != exported.sha256:
        raise CheckpointError(exported.path, "was changed while it was read", _AGAIN)
    return OnnxNetwork(exported, session_of(content, device, str(exported.path)))


def session_of(model: bytes, device: str = "cpu", name: str = "model") -> Any:
    """Open a model for `OnnxNetwork`, or to measure one that is not written yet."""
    ort = _import("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    # A thread that waits for work in a loop takes the core that decodes the next photos.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers():
        number = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # ONNX Runtime has a dozen types of its own
        raise CheckpointError(name, f"ONNX Runtime cannot load it ({error})", _UPDATE) from error


def versions() -> dict[str, str]:
    """Give the versions of the packages that the answers depend on."""
    _import("onnxruntime")
    return {"onnxruntime": metadata.version("onnxruntime")}


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"exported models need {name} ({error}): {INSTALL_LINE}") from error
