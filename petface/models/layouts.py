"""The weight and vocabulary layouts that specialists were stored in over time, brought to one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_HEAD = re.compile(r"(?:heads\.|head_)(?P<head>.+?)(?:\.(?:\d+|fc|linear))?\.(?P<kind>weight|bias)")
_BODY_PREFIXES = ("body.", "backbone.", "encoder.", "trunk.", "base.", "resnet.", "features.")
# A body kept as nn.Sequential(*list(resnet.children())[:-1]) numbers its children.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", **{str(4 + i): f"layer{1 + i}" for i in range(4)}}
_NUMBERED = re.compile(r"(0\.weight|1\.\w+|[4-7]\.\d+\..+)")  # none is a name of MobileNet's
_SIZE_KEYS = ("num_classes", "n_classes", "in_features", "out_features", "size", "dim")
_NAME_KEYS = ("classes", "class_names", "labels", "vocab", "names", "idx_to_class", "class_to_idx")


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
