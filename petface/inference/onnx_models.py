"""Exported models: an ONNX file and its card, checked before anything is computed with them.

A bundle is a folder that holds the whole two-stage system, an identity network or both:
`bundle.json`, `stage1.onnx`, `stage2/<species>.onnx`, `identity.onnx`, and beside each model its
card of the same name in JSON. The card repeats the model's metadata and adds what belongs to the
file: its SHA-256, a test vector, what was measured. A damaged file, a card that does not belong to
it, weights in a second file and operators that an export does not write are refused.

Optional: `INSTALL_LINE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from petface.data.fingerprint import from_json
from petface.data.images import to_float
from petface.errors import UserError, install_line
from petface.inference import onnx_check
from petface.models import checkpoints
from petface.models.checkpoints import CheckpointError, Described
from petface.models.embedding import read_matching
from petface.models.network import Outputs

FORMAT: Final = 2  # 1 took uint8 of any size and resized inside the graph
BUNDLE: Final = "bundle.json"
SUFFIX: Final = ".onnx"
INPUT: Final = "image"  # the name of what a model takes
IDENTITY: Final = "identity"  # the kind of a network that embeds, and its name in a bundle
INSTALL_LINE: Final = install_line("export")

# What a card and the model's metadata both hold; in the model each entry is JSON text.
METADATA: Final = (
    *("format", "kind", "species", "backbone", "precision", "heads", "sources", "preprocessing"),
    *("resizing", "calibration", "inputs", "outputs", "checkpoint", "opset", "packages"),
)
MAX_MODEL_BYTES: Final = 1_000_000_000  # eight ResNet-50 bodies have 0.8
MAX_CARD_BYTES: Final = 16_000_000  # of JSON; a card of PetFace's size has 5
MAX_CLASSES: Final = 100_000
_AGAIN = "copy the whole bundle again, or export again with python -m tools.export"
_UPDATE = "update PetFace, or export again"


@dataclass(frozen=True)
class Exported(Described):
    """A checked model, and what its card says."""

    path: Path
    content: bytes  # of the ONNX file
    precision: str  # "fp32" or "int8"
    threshold: float | None  # as in an `IdentityCheckpoint`
    false_match_rate: float | None

    def network(self, device: str) -> OnnxNetwork:
        """Open the model on a device."""
        return OnnxNetwork(self.content, self, device, str(self.path), self.precision)


def is_bundle(path: str | Path) -> bool:
    """Return whether a folder holds a finished bundle."""
    return Path(path, BUNDLE).is_file()


def find(
    folder_or_file: str | Path, species: str | None, *, is_identity: bool = False
) -> Path | None:
    """Find stage 1 (`species` None), a specialist or an identity network: the file, or its place.

    None where a bundle has no such specialist, or where the path is neither bundle nor ONNX file.
    """
    path = Path(folder_or_file)
    if path.suffix == SUFFIX:
        return path if path.is_file() else None
    if not is_bundle(path):
        return None
    if species is None:
        return path / (f"{IDENTITY}.onnx" if is_identity else "stage1.onnx")
    name = f"stage2/{species}.onnx"
    return path / name if name in _read_bundle(path) else None


def read(path: str | Path, species: str | None = None, *, is_identity: bool = False) -> Exported:
    """Check one model, as `find` names them, and its card; return what the card says.

    `CheckpointError` with file, reason and way out for anything that does not fit; where the file
    lies in a bundle, what the bundle lists must fit too.
    """
    path = Path(path)
    card_path = path.with_suffix(".json")
    folder = next((f for f in list(path.absolute().parents)[:2] if is_bundle(f)), None)
    content = _bytes_of(path, MAX_MODEL_BYTES, folder)
    card_text = _bytes_of(card_path, MAX_CARD_BYTES, folder)
    digest = hashlib.sha256(content).hexdigest()
    if folder is not None:
        listed = _read_bundle(folder)
        card_digest = hashlib.sha256(card_text).hexdigest()
        for file, found in ((path, digest), (card_path, card_digest)):
            if listed.get(file.absolute().relative_to(folder).as_posix()) != found:
                what = f"checksum is not the one in {folder / BUNDLE}"
                raise CheckpointError(file, what, _AGAIN)
    card = _table_of(card_path, card_text)
    if card.get("sha256") != digest:
        raise CheckpointError(path, "checksum is not the one in its card", _AGAIN)
    check_model(path, content, card)
    what = _role(card["species"], card["kind"] == IDENTITY)
    if what != (wanted := _role(species, is_identity)):
        raise CheckpointError(path, f"is {what}, not {wanted}")
    if card["precision"] not in ("fp32", "int8"):
        raise CheckpointError(card_path, "names no precision that exports have", _AGAIN)
    try:
        learnt = from_json(card.get("data") or {})
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(card_path, f"makes no sense: {error}") from error
    return Exported(
        _heads_of(path, card),
        dict(card["sources"]),
        checkpoints.read_preprocessing(path, card),
        checkpoints.read_calibration(path, card),
        path,
        content,
        card["precision"],
        *read_matching(path, card),
        data=learnt,
    )


def _role(species: str | None, is_identity: bool) -> str:
    if is_identity:
        return "an identity network"
    return "a stage 1" if species is None else f"a specialist for {species}"


def card_of(path: Path) -> dict[str, Any]:
    """Read the card of an exported model, unchecked: `read` compares it with the model."""
    return _table_of(card := path.with_suffix(".json"), _bytes_of(card, MAX_CARD_BYTES))


def _bytes_of(path: Path, most: int, folder: Path | None = None) -> bytes:
    """Read a regular file of at most `most` bytes; of a bundle, only what lies in its folder."""
    try:
        if path.stat().st_size > most:  # first: looped links are an OSError here
            raise CheckpointError(path, f"is larger than {most / 1e6:,.0f} MB", _AGAIN)
        if folder and folder.resolve() not in path.resolve().parents:
            raise CheckpointError(path, "is a link out of its bundle", _AGAIN)
        if not path.is_file():
            raise CheckpointError(path, "is not a file", _AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}", _AGAIN) from error


def _read_bundle(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of each file of a bundle."""
    path = folder / BUNDLE
    listed = _table_of(path, _bytes_of(path, MAX_CARD_BYTES, folder)).get("files")
    if not isinstance(listed, dict):
        raise CheckpointError(path, "does not list the files of a bundle", _AGAIN)
    return listed


def _table_of(path: Path, text: bytes) -> dict[str, Any]:
    """Read a JSON table of this format."""
    try:
        table = _json(text)
    except (ValueError, RecursionError, MemoryError) as error:  # no UTF-8 is among them
        raise CheckpointError(path, f"not valid JSON ({error})", _AGAIN) from error
    number = table.get("format") if isinstance(table, dict) else None
    if number != FORMAT:
        raise CheckpointError(path, f"is of format {number}, not {FORMAT}", _UPDATE)
    return table


def _json(text: str | bytes) -> Any:
    """Read JSON without the numbers that are none."""

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number")

    return json.loads(text, parse_constant=no_number)


def check_model(path: Path, content: bytes, card: Mapping[str, Any]) -> None:
    """Refuse a model that says other things than its card, or computes what no export writes."""
    onnx = _import("onnx")
    try:
        model = onnx.ModelProto.FromString(content)
        own = {entry.key: _json(entry.value) for entry in model.metadata_props}
    except Exception as error:  # the parser's own type is not part of its interface
        raise CheckpointError(path, f"not an ONNX file of ours ({error})", _AGAIN) from error
    names = (*METADATA, "matching") if card.get("kind") == IDENTITY else METADATA
    if any(name not in own or own[name] != card.get(name) for name in names):
        raise CheckpointError(path, "its metadata and its card say different things", _AGAIN)
    rule, heads = checkpoints.read_preprocessing(path, card), _heads_of(path, card)
    if what := onnx_check.foreign_part(onnx, model, INPUT, rule.size_px, heads):
        raise CheckpointError(path, what, _AGAIN)


def _heads_of(path: Path, card: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Read the classes of each head; `CheckpointError` where they are not lists of names."""
    heads: Any = card.get("heads")
    sources: Any = card.get("sources")
    for table, kind in ((heads, list), (sources, str)):
        if not isinstance(table, dict) or not all(isinstance(v, kind) for v in table.values()):
            raise CheckpointError(path, "its card does not list the classes of each head", _AGAIN)
    found = {head: tuple(map(str, names)) for head, names in heads.items()}
    if not found or not all(0 < len(names) <= MAX_CLASSES for names in found.values()):
        raise CheckpointError(path, f"has a head without a class or over {MAX_CLASSES:,}", _AGAIN)
    only = "species" if card.get("species") is None else ""
    only = "embedding" if card.get("kind") == IDENTITY else only
    if sources.keys() != heads.keys() or (only and [*found] != [only]):
        raise CheckpointError(path, f"has other heads than it should ({[*found]})", _AGAIN)
    return found


class OnnxNetwork:
    """A model ready to predict, with the interface of `network.Answerer`.

    On the GPU where one is wanted and can be had. `name` stands in errors.
    """

    device = torch.device("cpu")  # of pixels and answers

    def __init__(
        self,
        model: bytes,
        described: Described,
        device: str = "cpu",
        name: str = "model",
        precision: str = "fp32",
    ) -> None:
        self.preprocessing, self.temperatures = described.preprocessing, described.temperatures
        self.precision = precision
        self._session, self._heads = _open_session(model, device, name), list(described.heads)
        on_cpu = self._session.get_providers()[0] == "CPUExecutionProvider"
        self._rows = onnx_check.rows_at_once(self.preprocessing.size_px) if on_cpu else None

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the CPU."""
        parts = [
            self._session.run(self._heads, {INPUT: as_image(part)})
            for part in pixels.cpu().split(self._rows or len(pixels))
        ]
        columns = zip(*parts, strict=True)
        return tuple(torch.cat([*map(torch.from_numpy, column)]) for column in columns)


def as_image(pixels: Tensor) -> np.ndarray:
    """(B, S, S, 3) uint8 -> what a model takes: (B, 3, S, S) float32 in [0, 1]."""
    return to_float(pixels.permute(0, 3, 1, 2)).contiguous().numpy()


def _open_session(model: bytes, device: str, name: str) -> Any:
    ort = _import("onnxruntime")
    ort.disable_telemetry_events()
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
    """Return the versions of the packages that the predictions depend on."""
    _import("onnxruntime")
    return {"onnxruntime": metadata.version("onnxruntime")}


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"exported models need {name} ({error}): {INSTALL_LINE}") from error
