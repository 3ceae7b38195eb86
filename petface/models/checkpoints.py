"""Checkpoints: written whole, read without executing anything, old layouts through named adapters.

A checkpoint is a plain dictionary of tensors, numbers, strings, lists and dictionaries, so that
`torch.load(weights_only=True)` reads it. The zip container keeps a CRC-32 of every record, which
torch stores but does not check; `load` does.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from petface import files, taxonomy
from petface.data.fingerprint import Data, read_data
from petface.data.images import Preprocessing
from petface.errors import UserError, install_line
from petface.models import backbones, bounds, layouts, multi_head
from petface.models.architecture import Architecture, build_classifier

if TYPE_CHECKING:
    from petface.calibration import HeadCalibration

FORMAT = 1
Labels = Callable[[], Mapping[str, Sequence[str]]]  # head -> the labels of an annotation file
_MAX_REASON = 500  # characters
_COPY_AGAIN = "copy the file again, or use last.pt of the same run"
_OTHER_NETWORK = "it may be of another network or damaged: take the file of this one"
# Under what weights are kept: what was trained before what was averaged of it.
_WRAPPERS = (
    *("model", "model_state_dict", "state_dict", "net", "network", "module", "weights", "params"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
_OUTER = {"model", "net", "network"}  # attributes that a whole network is kept in
# How torch words that a file asks for code; its other refusals mean that the bytes make no sense.
_REFUSAL = re.compile(r"GLOBAL [\w.]+|TorchScript|Trying to call reduce|Can only (create|build)")


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

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Return the fitted temperature of each head, 1.0 where nothing was fitted."""
        fitted = [self.calibration.get(head) for head in self.heads]
        return tuple(entry.temperature if entry else 1.0 for entry in fitted)


@dataclass(frozen=True)
class Checkpoint(Described):
    """A network read from a file, in evaluation mode, and what belongs to it."""

    model: Any  # a module, or a `multi_head._MultiHeadModel`
    architecture: Architecture


@dataclass(frozen=True)
class Stage1Checkpoint(Checkpoint):
    """A species classifier, with its one head "species"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the species in the order of the logits."""
        return self.heads["species"]


@dataclass(frozen=True)
class Stage2Checkpoint(Checkpoint):
    """The specialist of a species."""

    species: str
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # what a user must know of its heads


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
        if is_archive and bounds.is_program(path):
            refusal = "TorchScript"
        elif is_archive and (damage := files.archive_damage(path)):
            raise CheckpointError(path, damage, _COPY_AGAIN)
        refusal = refusal or bounds.forbidden_instruction(path)
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
            reason = str(error) if isinstance(error, bounds.TooLargeError) else reason
            raise CheckpointError(path, reason, _COPY_AGAIN) from error
    if refusal == "TorchScript":
        what = "is a TorchScript program, not weights; nothing of it was run"
        raise CheckpointError(path, what, "save torch.jit.load(file).state_dict() with torch.save")
    if refusal:
        raise CheckpointError(
            path,
            f"holds pickled objects ({refusal}), not only weights; nothing of it was run",
            "store model.state_dict() and plain values instead",
        )
    if oddity := bounds.oddity(content, path.stat().st_size):
        raise CheckpointError(path, f"holds {oddity}", "store model.state_dict() instead")
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
        raise CheckpointError(path, f"damaged or not safetensors ({error})", _COPY_AGAIN) from error


def read_stage1(path: str | Path) -> Stage1Checkpoint:
    """Read a species classifier: `"model"`, `"class_to_index"` and what else is there."""
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
    return Stage1Checkpoint(heads, sources, rule, calibration, model, architecture, data=learnt)


def read_stage2(path: str | Path, species: str, labels_of: Labels = dict) -> Stage2Checkpoint:
    """Read a specialist of any layout for `species`.

    Head names pass through `taxonomy.feature_names` and are filtered to the species' features;
    heads without a class are skipped. Vocabulary of a head: the checkpoint's, else the built-in
    list of that species, else what `labels_of` gives of its annotation file, where the number fits,
    else female and male for gender, else "0" ... "K-1".
    """
    content = load(path)
    owner = content.get("species", species)
    if owner != species:
        raise CheckpointError(path, f"is a specialist for {owner}, not for {species}")
    architecture = read_architecture(path, content)
    read = layouts.read if architecture.is_plain else layouts.read_own
    try:
        found = read(weights_in(path, content), content)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
    is_own = content.get("format", 0) >= 1  # trained by SPECIES_CONFIG, which may have any head
    allowed = taxonomy.FEATURES if is_own else taxonomy.features_of(species)
    names = taxonomy.feature_names(species, list(found.heads))
    own_names = {feature: head for head, feature in names.items()}
    if len(own_names) < len(names):
        raise CheckpointError(path, f"has two heads of one feature ({', '.join(found.heads)})")
    renamed = taxonomy.feature_names(species, list(found.heads), list(found.vocabularies))
    stored = {renamed[h]: listed for h, listed in found.vocabularies.items() if is_own or listed}
    heads = [head for head in taxonomy.FEATURES if head in own_names and head in allowed]
    sizes: dict[str, int] = {h: n for h in heads if (n := found.size_of(own_names[h]))}
    if not sizes:
        raise CheckpointError(path, f"has no head for {species} (heads: {sorted(found.heads)})")
    if is_own and not stored.keys() >= sizes.keys():
        raise CheckpointError(
            path, f'"head_vocabs" lacks {sorted(sizes.keys() - stored.keys())}', _COPY_AGAIN
        )
    vocabularies, sources = {}, {}
    for head, size in sizes.items():
        vocabularies[head], sources[head] = _vocabulary(
            path, species, head, size, stored, labels_of
        )
    notes = [
        f"head {head} is read as {feature}"
        for head, feature in names.items()
        if feature != head.lower() and feature in sizes
    ]
    if dropped := [head for head, feature in names.items() if feature not in sizes]:
        notes.append(f"left out, no head of a {species} with classes: {', '.join(dropped)}")
    if nameless := [head for head, source in sources.items() if source == "index"]:
        notes.append(f"no names for the classes of {', '.join(nameless)}: answers are numbers")
    kind = multi_head.ChinchillaMultiHeadResNet18 if stored else multi_head.GenericMultiHeadResNet18
    with torch.device("meta"):
        model = kind(sizes, architecture)
    state = {f"body.{key}": value for key, value in found.body.items()}
    for head in sizes:
        state |= {f"heads.{head}.{n}": t for n, t in found.heads[own_names[head]].items()}
    fill(path, model, state)
    rule, calibration = read_preprocessing(path, content), read_calibration(path, content, names)
    return Stage2Checkpoint(
        *(vocabularies, sources, rule, calibration, model, architecture, species),
        data=fingerprint_in(path, content),
        notes=tuple(notes),
    )


def _vocabulary(
    path: str | Path,
    species: str,
    head: str,
    size: int,
    stored: Mapping[str, tuple[str, ...]],
    labels_of: Labels,
) -> tuple[tuple[str, ...], str]:
    if head in stored:
        if len(stored[head]) != size:
            raise CheckpointError(
                path, f"head {head} has {size} outputs but {len(stored[head])} class names"
            )
        return stored[head], "checkpoint"
    built_in = taxonomy.FALLBACK_VOCABULARIES.get(species, {}).get(head, ())
    if len(built_in) == size:
        return built_in, "built-in"
    listed = tuple(labels_of().get(head, ()))
    if len(listed) == size:
        return listed, "annotations"
    if head == "gender" and size == len(taxonomy.GENDER_VOCABULARY):
        return taxonomy.GENDER_VOCABULARY, "gender"
    return tuple(str(index) for index in range(size)), "index"


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
    if rule.size_px > bounds.MAX_SIZE_PX:
        what = f"preprocessing: size_px is {rule.size_px}, more than {bounds.MAX_SIZE_PX}"
        raise CheckpointError(path, what, _COPY_AGAIN)
    return rule


def read_calibration(
    path: str | Path, content: Mapping[str, Any], features: Mapping[str, str] = MappingProxyType({})
) -> dict[str, HeadCalibration]:
    """Read what was fitted per head; old checkpoints and last.pt hold nothing."""
    from petface.calibration import HeadCalibration  # a training needs it at its end alone

    table = content.get("calibration", {})
    if not isinstance(table, dict):
        raise CheckpointError(path, f'"calibration" is a {type(table).__name__}', _COPY_AGAIN)
    found = {}
    for name, entry in table.items():
        entry = entry if isinstance(entry, dict) else {}
        names = [f.name for f in fields(HeadCalibration) if f.name != "reason"]
        numbers: list[Any] = [entry.get(n, getattr(HeadCalibration, n, None)) for n in names]
        are_plain = all(n is None or (type(n) in (int, float) and abs(n) < 1e9) for n in numbers)
        if not are_plain or numbers[0] is None or numbers[0] <= 0:
            raise CheckpointError(
                path, f'"calibration" of {name} makes no sense: {numbers}', _COPY_AGAIN
            )
        numbers.append(str(entry.get("reason", "")))
        found[features.get(str(name), str(name))] = HeadCalibration(*numbers)
    return found


def fingerprint_in(path: str | Path, content: Mapping[str, Any]) -> Data | None:
    """Read what the weights learnt from; None in old and foreign checkpoints."""
    try:
        return read_data(content)
    except ValueError as error:
        raise CheckpointError(path, str(error), _COPY_AGAIN) from error
