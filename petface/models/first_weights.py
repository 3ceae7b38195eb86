"""The weights that a network begins with: its bodies, and the rows of classes known before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from petface.data.dataset import Dataset
from petface.data.fingerprint import Data, describe_data
from petface.errors import SettingsError
from petface.models import backbones, checkpoints, layouts
from petface.models.architecture import bodies_of, head_of, states_of_bodies
from petface.models.checkpoints import CheckpointError

HUBS: Final = ("torchvision", "timm")  # where a network fetches ImageNet weights


def initialise(
    model: Any,
    weights: str | Sequence[str],
    policy: str,
    vocabularies: Mapping[str, Sequence[str]],
    species: str = "",
) -> str:
    """Fill a classifier or a specialist with first weights in place; return their origin.

    Bodies as `initialise_body` does. One checkpoint of ours for all of them also gives the heads of
    equal name (`vocabularies`: head -> classes, "species" in stage 1) the rows of the classes that
    both know, so that a network can learn one class more; rows of new classes stay random.
    """
    bodies, backbone = getattr(model, "body", model), model.architecture.backbone
    origin = initialise_body(bodies, backbone, weights, policy, species)
    source, *others = _sources(weights, len(bodies_of(bodies)), species)
    if others or policy == "none" or source in ("none", *HUBS):
        return origin
    kept = ", ".join(_keep_known_rows(model, source, vocabularies, species))
    return f"{origin}, heads as in the file for {kept}" if kept else origin


def _keep_known_rows(
    model: Any, path: str, vocabularies: Mapping[str, Sequence[str]], species: str
) -> Iterator[str]:
    """Copy heads as far as both know the classes; yield each with the number of these."""
    content = checkpoints.load(path)
    if content.get("format", 0) < 1 or content.get("species", "") != species:
        return
    found = layouts.read_stage2(path, species) if species else checkpoints.read_stage1(path)
    for head in [head for head in vocabularies if head in found.heads]:
        rows = {name: row for row, name in enumerate(found.heads[head])}
        pairs = [(k, rows[name]) for k, name in enumerate(vocabularies[head]) if name in rows]
        own, stored = (head_of(net, head).state_dict() for net in (model, found.model))
        *inner, weight, bias = own  # the last layer has a row for each class
        is_alike = own.keys() == stored.keys() and own[weight].shape[1] == stored[weight].shape[1]
        if not pairs or not is_alike:
            continue
        to, of = torch.tensor(pairs).T
        for key in inner:
            own[key].copy_(stored[key])
        for key in (weight, bias):
            own[key][to] = stored[key][of]
        yield f"{len(pairs)} of {len(vocabularies[head])} classes of {head}"


def initialise_body(
    body: nn.Module, name: str, weights: str | Sequence[str], policy: str, species: str = ""
) -> str:
    """Fill one body or several of a backbone with first weights in place; return their origin.

    `weights`: "none", one of `HUBS` (ImageNet) or the path of a checkpoint or state dictionary, one
    for all bodies or a list with one for each; `{species}` in a path becomes `species`. `policy`:
    "require", "auto" or "none", see `backbones.load_torchvision_weights`. A local file that does
    not fit is always an error; one of several bodies fits as many.
    """
    bodies = bodies_of(body)
    groups = [bodies] if isinstance(weights, str) else [[one] for one in bodies]
    each = _sources(weights, len(bodies), species)
    if policy == "none":
        return "random"
    origin = [_fill(*pair, name, policy) for pair in zip(groups, each, strict=True)]
    return " + ".join(origin)


def _sources(weights: str | Sequence[str], num_bodies: int, species: str) -> list[str]:
    """List where first weights come from: one source for all bodies, or one for each."""
    each = [weights] if isinstance(weights, str) else weights
    if len(each) != num_bodies and not isinstance(weights, str):
        raise SettingsError(
            f"WEIGHTS is a list of {len(each)}, but BODIES is {num_bodies}: give one for each, or "
            "text instead of a list for all"
        )
    return [source.replace("{species}", species) for source in each]


def describe_learnt(
    dataset: Dataset,
    weights: str | Sequence[str],
    policy: str,
    num_bodies: int = 1,
    species: str | None = None,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
) -> Data:
    """Describe what a network learns from, see `describe_data`, and what its first weights did."""
    sources = dict.fromkeys(_sources(weights, num_bodies, species or ""))
    data = describe_data(dataset, species, vocabularies)
    own = np.concatenate([data["records"][split].numpy() for split in ("train", "val")])
    inherited, unknown = [np.empty(0, np.int64)], list[str]()
    for path in sources:
        if policy == "none" or path in ("none", *HUBS):
            continue
        if found := checkpoints.fingerprint_in(path, checkpoints.load(path)):
            sets = [*(found["records"][split] for split in ("train", "val")), found["inherited"]]
            inherited += [t.numpy() for t in sets]
        unknown += found["unknown"] if found else [f"weights of {Path(path).name}"]
    more = np.setdiff1d(np.concatenate(inherited), own)
    return {**data, "inherited": torch.tensor(more), "unknown": unknown}


def _fill(bodies: list[nn.Module], weights: str, name: str, policy: str) -> str:
    origin = "random"
    if weights in HUBS:
        if (weights == "timm") != name.startswith(backbones.TIMM):
            raise SettingsError(f'WEIGHTS = "{weights}" has none of BACKBONE = "{name}"')
        for body in bodies:
            origin = backbones.load_torchvision_weights(body, name, policy)
            if origin.startswith("random"):  # no network: the next ones would wait for it as long
                break
    elif weights != "none":
        origin = f"file {Path(weights).name}{_fill_from_file(bodies, weights, name)}"
    return origin


def _fill_from_file(bodies: list[nn.Module], path: str, name: str) -> str:
    """Fill bodies with those of a file, whatever stands around them; return what was left out."""
    state = checkpoints.weights_in(path, checkpoints.load(path))
    own = bodies[0].state_dict()
    # not conv1.weight of a ResNet: each of its blocks has one of that name
    first = next(key for key in own if not any(other.endswith(f".{key}") for other in own))
    prefix = _prefix(path, state, first)
    if prefix is None and name.startswith(backbones.TIMM):
        state, prefix = backbones.timm_part().own_names(name, state), ""
    elif prefix is None:  # a ResNet that was kept as a row of layers
        state = {layouts.torchvision_name(key): tensor for key, tensor in state.items()}
        prefix = _prefix(path, state, first) or ""
    inner = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    states = states_of_bodies(inner)
    if len(states) == 1:
        states *= len(bodies)
    if len(states) != len(bodies):
        raise CheckpointError(path, f"has {len(states)} bodies, but is to fill {len(bodies)}")
    for key, tensor in inner.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = f"holds NaN or infinite numbers in {key}"
            raise CheckpointError(path, what, "take a checkpoint from before they came")
    try:
        for body, found in zip(bodies, states, strict=True):
            backbones.fill_body(body, name, found)
    except RuntimeError as error:
        shapes = {k: t for k, t in states[0].items() if k in own}
        reason = checkpoints.misfit(own, {**own, **shapes}) or str(error)
        way_out = "set BACKBONE to the network that the file is of"
        raise CheckpointError(path, f"does not fit a {name} body ({reason})", way_out) from error
    if prefix in ("", "body."):  # as our own files have it
        return ""
    return f" (prefix {prefix} taken off, {len(state) - len(inner)} other tensors left out)"


def _prefix(path: str, state: Mapping[str, Tensor], first: str) -> str | None:
    """Find what stands in front of the name of a body's first weight; None where that is not."""
    pattern = re.compile(r"((?:.+?\.)??)(?:bodies\.\d+\.)?" + re.escape(first))
    found = {match[1] for match in map(pattern.fullmatch, state) if match}
    if len(found) > 1 and "" not in found:
        raise CheckpointError(
            path, f"holds several networks ({', '.join(sorted(found))})", "store one of them alone"
        )
    return None if not found else "" if "" in found else found.pop()
