"""Specialists in every layout of weights and vocabularies that they were stored in over time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petface import taxonomy
from petface.models import architecture, checkpoints
from petface.models.checkpoints import COPY_AGAIN, Checkpoint, CheckpointError

_HEAD = re.compile(r"(?:heads\.|head_)(?P<head>.+?)(?:\.(?:\d+|fc|linear))?\.(?P<kind>weight|bias)")
_BODY_PREFIXES = ("body.", "backbone.", "encoder.", "trunk.", "base.", "resnet.", "features.")
# A body kept as nn.Sequential(*list(resnet.children())[:-1]) numbers its children.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", **{str(4 + i): f"layer{1 + i}" for i in range(4)}}
_NUMBERED = re.compile(r"(0\.weight|1\.\w+|[4-7]\.\d+\..+)")  # none is a name of MobileNet's
_SIZE_KEYS = ("num_classes", "n_classes", "in_features", "out_features", "size", "dim")
_NAME_KEYS = ("classes", "class_names", "labels", "vocab", "names", "idx_to_class", "class_to_idx")


Labels = Callable[[], Mapping[str, Sequence[str]]]  # head -> the labels of an annotation file


@dataclass(frozen=True)
class Found:
    """A specialist taken apart: its body, by torchvision's names, and its heads with classes."""

    body: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]  # head -> name within it -> tensor
    vocabularies: dict[str, tuple[str, ...]]

    def size_of(self, head: str) -> int:
        """Return the number of outputs of a head, by the bias of its last layer."""
        biases = [name for name in self.heads[head] if name.endswith("bias")]
        return self.heads[head][max(biases)].numel() if biases else 0


def read(state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Found:
    """Split a state dictionary and the checkpoint around it; `ValueError` names what is missing.

    Layouts known: `head_vocabs`; `feature_infos`; `heads_meta`; `vocabs` + `heads`; and the legacy
    one with flat `head_<name>.*` weights and no vocabulary, whose classes follow from the shapes.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    body: dict[str, Tensor] = {}
    for key, value in state.items():
        match = _HEAD.fullmatch(key)
        if match:
            part = parts.setdefault(match["head"], {})
            if match["kind"] in part:
                raise ValueError(f"head {match['head']} has more than one layer")
            part[match["kind"]] = value
        else:
            body[torchvision_name(key)] = value
    heads = {}
    for head, tensors in parts.items():
        sizes = [tensor.shape[:1] for tensor in tensors.values()]
        if set(tensors) != {"weight", "bias"} or sizes[0] != sizes[1] or not sizes[0]:
            raise ValueError(f"head {head} lacks a weight or a bias, or they differ in size")
        heads[head] = tensors
    if not heads:
        raise ValueError("holds no head (no weights under heads.<name> or head_<name>)")
    return Found(body, heads, _vocabularies(content))


def read_own(state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Found:
    """Split a state dictionary with the names of `_MultiHeadModel`, whatever is within its heads.

    `ValueError` names what is missing.
    """
    found = Found({}, {}, _vocabularies(content))
    for key, value in state.items():
        part, _, rest = key.partition(".")
        head, _, name = rest.partition(".")
        if part == "heads" and name:
            found.heads.setdefault(head, {})[name] = value
        else:
            found.body[key.removeprefix("body.")] = value
    if not found.heads:
        raise ValueError("holds no head (no weights under heads.<name>)")
    return found


def torchvision_name(key: str) -> str:
    """Return torchvision's name of a body's weight, from those that other programs give it."""
    for prefix in _BODY_PREFIXES:
        rest = key.removeprefix(prefix)
        first, _, tail = rest.partition(".")
        if rest != key and _NUMBERED.fullmatch(rest):
            return f"{_SEQUENTIAL[first]}.{tail}"
        if rest != key and prefix != "features.":  # MobileNet's own names begin with "features."
            return rest
    return key


def _vocabularies(content: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Gather the names of each head from all tables, and from `<head>_vocab` beside the weights."""
    found: dict[str, tuple[str, ...]] = {}
    for key in ("head_vocabs", "feature_infos", "heads_meta", "vocabs", "heads"):
        entries = content.get(key)
        if isinstance(entries, list):  # [{"name": head, "classes": [...]}, ...]
            entries = {
                entry.get("name", entry.get("feature")): entry
                for entry in entries
                if isinstance(entry, dict)
            }
        if entries is None or (key == "heads" and not isinstance(entries, dict)):
            continue
        if not isinstance(entries, dict):
            raise ValueError(f'"{key}" is a {type(entries).__name__}, not a table of heads')
        for head, entry in entries.items():
            if (names := _names(entry)) is not None and not found.get(str(head)):
                found[str(head)] = names
    for key, entry in content.items():
        head = str(key).removesuffix("_vocab").removeprefix("head_")
        if str(key).endswith("_vocab") and (names := _names(entry)) and not found.get(head):
            found[head] = names
    return found


def _names(entry: Any) -> tuple[str, ...] | None:
    """Class names in index order from a list, {name: index}, {index: name} or a dictionary around
    one.
    """
    if isinstance(entry, (list, tuple)):
        return tuple(str(name) for name in entry)
    if not isinstance(entry, dict):
        return None
    for key in _NAME_KEYS:
        if isinstance(entry.get(key), (list, tuple, dict)):
            return _names(entry[key])
    if not entry:
        return ()
    table = {key: value for key, value in entry.items() if key not in _SIZE_KEYS}
    if table and all(isinstance(index, int) for index in table.values()):
        pairs = [(index, name) for name, index in table.items()]
    elif table and all(str(index).isdigit() for index in table):
        pairs = [(int(index), name) for index, name in table.items()]
    else:
        return None
    if sorted(index for index, _ in pairs) != list(range(len(pairs))):
        raise ValueError(f"a vocabulary does not number its {len(pairs)} classes from 0")
    return tuple(str(name) for _, name in sorted(pairs))


def read_stage2(path: str | Path, species: str, labels_of: Labels = dict) -> Checkpoint:
    """Read a specialist of any layout for `species`.

    Head names pass through `taxonomy.feature_names` and are filtered to the species' features;
    heads without a class are skipped. Vocabulary of a head: the checkpoint's, else the built-in
    list of that species, else what `labels_of` gives of its annotation file, where the number fits,
    else female and male for gender, else "0" ... "K-1".
    """
    content = checkpoints.load(path)
    owner = content.get("species", species)
    if owner != species:
        raise CheckpointError(path, f"is a specialist for {owner}, not for {species}")
    built_as = checkpoints.read_architecture(path, content)
    split = read if built_as.is_plain else read_own
    try:
        found = split(checkpoints.weights_in(path, content), content)
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
            path, f'"head_vocabs" lacks {sorted(sizes.keys() - stored.keys())}', COPY_AGAIN
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
    newer, legacy = architecture.ChinchillaMultiHeadResNet18, architecture.GenericMultiHeadResNet18
    with torch.device("meta"):
        model = (newer if stored else legacy)(sizes, built_as)
    state = {f"body.{key}": value for key, value in found.body.items()}
    for head in sizes:
        state |= {f"heads.{head}.{n}": t for n, t in found.heads[own_names[head]].items()}
    checkpoints.fill(path, model, state)
    rule = checkpoints.read_preprocessing(path, content)
    calibration = checkpoints.read_calibration(path, content, names)
    return Checkpoint(
        *(vocabularies, sources, rule, calibration, model, built_as),
        data=checkpoints.fingerprint_in(path, content),
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
