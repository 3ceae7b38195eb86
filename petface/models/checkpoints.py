"""Checkpoints: written whole, read without executing anything; `layouts` reads specialists.

A checkpoint is a plain dictionary of tensors, numbers, strings, lists and dictionaries, so that
`torch.load(weights_only=True)` reads it. The zip container keeps a CRC-32 of every record, which
torch stores but does not check; `load` does. torch's own reader executes nothing, but builds what a
file describes: `bytearray(10**11)`, a sparse tensor, one number expanded to terabytes. So the
pickle is read as a list of instructions before anything of that size is built.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from petface import files
from petface.data.fingerprint import Data, read_data
from petface.data.images import Preprocessing
from petface.errors import UserError, install_line
from petface.models import backbones
from petface.models.architecture import Architecture, build_classifier

if TYPE_CHECKING:
    from petface.calibration import HeadCalibration

FORMAT = 1
_MAX_REASON = 500  # characters
COPY_AGAIN = "copy the file again, or use last.pt of the same run"
_OTHER_NETWORK = "it may be of another network or damaged: take the file of this one"
# Under what weights are kept: what was trained before what was averaged of it.
_WRAPPERS = (
    *("model", "model_state_dict", "state_dict", "net", "network", "module", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
_OUTER = {"model", "net", "network"}  # attributes that a whole network is kept in
# How torch words that a file asks for code; its other refusals mean that the bytes make no sense.
_REFUSAL = re.compile(r"GLOBAL [\w.]+|TorchScript|Trying to call reduce|Can only (create|build)")
MAX_PICKLE_BYTES: Final = 4_000_000  # 0.1 in a run of eight ResNet-50 bodies
MAX_ITEMS: Final = 4_000_000  # keys and values of all tables and lists, counted as often as met
MAX_DEPTH: Final = 50  # of tables in tables
MAX_TEXT: Final = 1_000_000  # characters of one text
MAX_SIZE_PX: Final = 2048  # of the images that a network takes
# What state dictionaries and plain values are made of. The others that torch lets pass allocate
# what they are told to, or have no values at all.
_GLOBALS = re.compile(
    r"collections OrderedDict|(builtins|__builtin__) set|"
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device|u?int\d+|b?float\d+|bool|"
    r"(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage)"
)
_DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8}
_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}


class TooLargeError(ValueError):
    """A table that declares more than any checkpoint does."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used: the message names the file, the reason and the way out."""

    def __init__(self, path: str | Path, reason: str, way_out: str = "") -> None:
        reason = " ".join(reason.split())  # one line, however a file names its classes
        reason = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]} ..."
        super().__init__(f"{path}: {reason}" + (f"; {way_out}" if way_out else ""))


@dataclass(frozen=True)
class Described:
    """What a stored network predicts, in a checkpoint or in an export.

    `heads[head][k]` is the class of logit k; heads stand in the order of the outputs. `sources`
    says where the classes of a head came from ("checkpoint", "built-in", "annotations", "gender",
    "index"); `calibration` has the heads that were calibrated.
    """

    heads: dict[str, tuple[str, ...]]
    sources: dict[str, str]
    preprocessing: Preprocessing
    calibration: dict[str, HeadCalibration]
    data: Data | None = field(default=None, kw_only=True)  # what it learnt from, if it says so
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # what a user must know of its heads

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Return the fitted temperature of each head, 1.0 where nothing was fitted."""
        fitted = [self.calibration.get(head) for head in self.heads]
        return tuple(entry.temperature if entry else 1.0 for entry in fitted)


@dataclass(frozen=True)
class Checkpoint(Described):
    """A network read from a file, in evaluation mode, and what belongs to it."""

    model: Any  # a module, or an `architecture._MultiHeadModel`
    architecture: Architecture


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with the format number."""
    with files.atomic_write(path) as handle:
        try:
            torch.save({"format": FORMAT, **content}, handle)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides that the disk is full
                raise error.__context__ from None
            raise


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's dictionary on the CPU; anything wrong is a `CheckpointError`.

    Nothing in the file is executed: only tensors and plain values are accepted, without exception.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(path, "no such file", "train first, or check the path")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content, refusal = None, ""
    try:
        # files of torch before 1.6 are no archives, and have no checksum
        is_archive = zipfile.is_zipfile(path)
        if is_archive and _is_program(path):
            refusal = "TorchScript"
        elif is_archive and (damage := files.archive_damage(path)):
            raise CheckpointError(path, damage, COPY_AGAIN)
        refusal = refusal or _forbidden_instruction(path)
        if not refusal:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}", "try again") from error
    except Exception as error:  # zipfile and torch raise a dozen types for damaged files
        found = _REFUSAL.search(str(error))
        refusal = found[0] if found else ""
        if not refusal:
            reason = f"damaged or not a checkpoint ({type(error).__name__})"
            reason = str(error) if isinstance(error, TooLargeError) else reason
            raise CheckpointError(path, reason, COPY_AGAIN) from error
    if refusal == "TorchScript":
        what = "is a TorchScript program, not weights; nothing of it was run"
        raise CheckpointError(path, what, "save torch.jit.load(file).state_dict() with torch.save")
    if refusal:
        raise CheckpointError(
            path,
            f"holds pickled objects ({refusal}), not only weights; nothing of it was run",
            "store model.state_dict() and plain values instead",
        )
    if odd := _oddity(content, path.stat().st_size):
        raise CheckpointError(path, f"holds {odd}", "store model.state_dict() instead")
    if not isinstance(content, dict):
        raise CheckpointError(path, f"holds a {type(content).__name__}, not a dictionary")
    number = content.get("format", 0)
    if not isinstance(number, int) or number > FORMAT:
        raise CheckpointError(
            path, f"has format {number}, newer than {FORMAT}", "update PetFace, or train again"
        )
    return content


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and nothing else."""
    try:
        from safetensors.torch import load_file

        return load_file(path)
    except ImportError as error:
        raise CheckpointError(path, f"needs safetensors: {install_line('timm')}") from error
    except Exception as error:  # it has a type of its own for damage
        raise CheckpointError(path, f"damaged or not safetensors ({error})", COPY_AGAIN) from error


def _is_program(path: Path) -> bool:
    """Return whether an archive is a TorchScript program."""
    with zipfile.ZipFile(path) as archive:
        return any(name.lower().endswith("/constants.pkl") for name in archive.namelist())


def _forbidden_instruction(path: Path) -> str:
    """Return what in the pickle of a checkpoint could do more than name tensors; "" if nothing.

    `ValueError` for bytes that are no pickle, `TooLargeError` for too many.
    """
    with path.open("rb") as handle:  # torch goes by the first bytes, too
        is_archive = handle.read(4) == b"PK\3\4"
        handle.seek(0)
        # before torch 1.6: magic number, version, machine, content, storages
        pickles = [io.BytesIO(handle.read(0 if is_archive else MAX_PICKLE_BYTES))] * 5
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            records = [(one.filename.lower(), one) for one in archive.infolist()]  # as torch does
            tables = [one for name, one in records if name.endswith("/data.pkl")]
            if any(one.file_size > MAX_PICKLE_BYTES for one in tables):
                raise TooLargeError(f"its table is larger than {MAX_PICKLE_BYTES:,} bytes")
            pickles = [io.BytesIO(archive.read(one)) for one in tables]
    for stream in pickles:
        for instruction, argument, _ in pickletools.genops(stream):
            name = str(argument)
            if instruction.name in ("GLOBAL", "INST") and not _GLOBALS.fullmatch(name):
                return f"GLOBAL {name.replace(' ', '.'):.60}"
            if instruction.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                return f"GLOBAL by {instruction.name}"
    return ""


def _oddity(content: Any, num_bytes: int) -> str:
    """Return what no checkpoint holds although torch reads it; "" where there is nothing.

    `num_bytes` is the size of the file: no tensor can have more.
    """
    todo, num = [(content, 0)], 0
    while todo:
        value, depth = todo.pop()
        num += 1
        if num + len(todo) > MAX_ITEMS or depth > MAX_DEPTH:
            return f"more than {MAX_ITEMS:,} entries, or tables {MAX_DEPTH} deep in each other"
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                return f"a tensor without plain values ({value.layout}, {value.device})"
            declared, size = value.numel() * value.itemsize, value.untyped_storage().nbytes()
            if value.dtype not in _DTYPES or not declared <= size <= num_bytes:
                what = f"{list(value.shape)} {value.dtype}"
                return f"a tensor that declares {what}, not what is there"
        elif isinstance(value, dict):
            todo += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, (list, tuple, set)):
            todo += [(part, depth + 1) for part in value]
        elif isinstance(value, (str, bytes)) and len(value) > MAX_TEXT:
            return f"a text of {len(value):,} characters"
        elif isinstance(value, int) and value.bit_length() > 4096:
            return f"a number of {value.bit_length():,} bits"
    return ""


def read_stage1(path: str | Path) -> Checkpoint:
    """Read a species classifier: its one head is "species"."""
    content = load(path)
    state = weights_in(path, content)
    table = content.get("class_to_index")
    table = table if isinstance(table, dict) else {}
    numbers = list(table.values())
    if set(map(type, numbers)) != {int} or sorted(numbers) != list(range(len(numbers))):
        raise CheckpointError(
            path, '"class_to_index" is missing or does not number its classes from 0', "use best.pt"
        )
    classes = tuple(str(name) for name in sorted(table, key=table.__getitem__))
    architecture = read_architecture(path, content)
    with torch.device("meta"):
        model = build_classifier(architecture, len(classes))
    fill(path, model, state)
    rule, calibration = read_preprocessing(path, content), read_calibration(path, content)
    heads, sources = {"species": classes}, {"species": "checkpoint"}
    learnt = fingerprint_in(path, content)
    return Checkpoint(heads, sources, rule, calibration, model, architecture, data=learnt)


def read_architecture(path: str | Path, content: Mapping[str, Any]) -> Architecture:
    """Read what network the weights are of; old checkpoints named its backbone at most."""
    try:
        return Architecture.from_stored(content)
    except ValueError as error:
        raise CheckpointError(path, str(error), "update PetFace, or copy the file again") from error


def weights_in(path: str | Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the state dictionary in a checkpoint, within whatever a trainer wrapped around it.

    Names lose what DataParallel, torch.compile and averaging put into them, wherever it stands,
    and a wrapper's name that all of them begin with.
    """
    while inner := [key for key in _WRAPPERS if isinstance(content.get(key), dict)]:
        content = content[inner[0]]
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        parts = [part for part in str(key).split(".") if part not in ("module", "_orig_mod")]
        name = ".".join(parts)
        if isinstance(value, Tensor) and parts[-1:] != ["n_averaged"]:
            if name in state:
                raise CheckpointError(path, f"has two weights named {name}", _OTHER_NETWORK)
            state[name] = value
    while len(first := {name.partition(".")[0] for name in state}) == 1 and first <= _OUTER:
        state = {name.partition(".")[2]: value for name, value in state.items()}
    if not state:
        raise CheckpointError(path, 'holds no weights under "model"', "use best.pt or last.pt")
    return state


def fill(path: str | Path, model: Any, state: Mapping[str, Tensor]) -> None:
    """Load weights into a network without any, on "meta": nothing is built that they lack."""
    own = model.state_dict()
    if reason := misfit(own, state):
        raise CheckpointError(path, f"weights do not fit the network ({reason})", _OTHER_NETWORK)
    fitting = {name: t.detach().to(own[name].dtype).contiguous() for name, t in state.items()}
    model.load_state_dict(fitting, assign=True)
    backbones.timm_part().fill_buffers(model)
    model.eval()


def misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe in a few words where weights are not those of a network; "" where they are."""
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing, unknown = ([n for n in a if n not in b] for a, b in ((own, state), (state, own)))
    faults = [
        f"{word} {', '.join(sorted(names, key=lambda name: not name.startswith('heads'))[:2])}"
        + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        for word, names in (("missing", missing), ("unknown", unknown), ("shape:", shapes))
        if names
    ]
    return "; ".join(faults)


def read_preprocessing(path: str | Path, content: Mapping[str, Any]) -> Preprocessing:
    """Read how images must be prepared; old checkpoints meant 224 px, stretched."""
    if "preprocessing" not in content:
        return Preprocessing()
    try:
        rule = Preprocessing.from_dict(content["preprocessing"])
    except (UserError, OverflowError) as error:
        raise CheckpointError(path, f"preprocessing: {error}") from error
    if rule.size_px > MAX_SIZE_PX:
        what = f"preprocessing: size_px is {rule.size_px}, more than {MAX_SIZE_PX}"
        raise CheckpointError(path, what, COPY_AGAIN)
    return rule


def read_calibration(
    path: str | Path, content: Mapping[str, Any], features: Mapping[str, str] = MappingProxyType({})
) -> dict[str, HeadCalibration]:
    """Read what was fitted per head; old checkpoints and last.pt hold nothing."""
    from petface.calibration import HeadCalibration  # a training needs it at its end alone

    table = content.get("calibration", {})
    if not isinstance(table, dict):
        raise CheckpointError(path, f'"calibration" is a {type(table).__name__}', COPY_AGAIN)
    found = {}
    for name, entry in table.items():
        entry = entry if isinstance(entry, dict) else {}
        names = [f.name for f in fields(HeadCalibration) if f.name != "reason"]
        numbers: list[Any] = [entry.get(n, getattr(HeadCalibration, n, None)) for n in names]
        are_plain = all(n is None or (type(n) in (int, float) and abs(n) < 1e9) for n in numbers)
        if not are_plain or numbers[0] is None or numbers[0] <= 0:
            raise CheckpointError(
                path, f'"calibration" of {name} makes no sense: {numbers}', COPY_AGAIN
            )
        numbers.append(str(entry.get("reason", "")))
        found[features.get(str(name), str(name))] = HeadCalibration(*numbers)
    return found


def fingerprint_in(path: str | Path, content: Mapping[str, Any]) -> Data | None:
    """Read what the weights learnt from; None in old and foreign checkpoints."""
    try:
        return read_data(content)
    except ValueError as error:
        raise CheckpointError(path, str(error), COPY_AGAIN) from error
