"""The weights that the bodies of a network begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from petface.data.dataset import Dataset
from petface.data.fingerprint import Data, describe_data
from petface.errors import SettingsError
from petface.models import backbones, checkpoints
from petface.models.architecture import bodies_of, states_of_bodies
from petface.models.checkpoints import CheckpointError


def initialise_body(
    body: nn.Module,
    name: str,
    weights: str | Sequence[str],
    policy: str,
    species: str = "",
) -> str:
    """Fill one body or several of a backbone with first weights, in place; say where they came
    from.

    `weights`: "none", "torchvision" (ImageNet) or the path of a checkpoint or state dictionary, one
    for all bodies or a list with one for each; `{species}` in a path becomes `species`. `policy`:
    "require", "auto" or "none", see `backbones.load_torchvision_weights`. A local file that does
    not fit is always an error; one of several bodies fits as many.
    """
    bodies = bodies_of(body)
    groups = [bodies] if isinstance(weights, str) else [[one] for one in bodies]
    each = [weights] if isinstance(weights, str) else weights
    if len(each) != len(groups):
        raise SettingsError(
            f"WEIGHTS is a list of {len(each)}, but BODIES is {len(bodies)}: give one for each, or "
            "text instead of a list for all"
        )
    if policy == "none":
        return "random"
    each = [source.replace("{species}", species) for source in each]
    told = [_fill(*pair, name, policy) for pair in zip(groups, each, strict=True)]
    return " + ".join(told)


def describe_learnt(
    dataset: Dataset,
    weights: str | Sequence[str],
    policy: str,
    species: str | None = None,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
) -> Data:
    """Describe what a network learns from, see `describe_data`, and what its first weights did."""
    data = describe_data(dataset, species, vocabularies)
    own = np.concatenate([data["records"][part].numpy() for part in ("train", "val")])
    inherited, unknown = [np.empty(0, np.int64)], list[str]()
    for source in {weights: 0} if isinstance(weights, str) else dict.fromkeys(weights):
        if policy == "none" or source in ("none", "torchvision"):
            continue
        path = source.replace("{species}", species or "")
        if found := checkpoints.fingerprint_in(path, checkpoints.load(path)):
            sets = [*(found["records"][part] for part in ("train", "val")), found["inherited"]]
            inherited += [t.numpy() for t in sets]
        unknown += found["unknown"] if found else [f"weights of {Path(path).name}"]
    more = np.setdiff1d(np.concatenate(inherited), own)
    return {**data, "inherited": torch.tensor(more), "unknown": unknown}


def _fill(bodies: list[nn.Module], weights: str, name: str, policy: str) -> str:
    told = "random"
    if weights == "torchvision":
        for body in bodies:
            told = backbones.load_torchvision_weights(body, name, policy)
            if told.startswith("random"):  # no network: the next ones would wait for it as long
                break
    elif weights != "none":
        _fill_from_file(bodies, weights, name)
        told = f"file {Path(weights).name}"
    return told


def _fill_from_file(bodies: list[nn.Module], path: str, name: str) -> None:
    state = checkpoints.weights_in(path, checkpoints.load(path))
    own = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    states = states_of_bodies(own or state)
    if len(states) == 1:
        states *= len(bodies)
    if len(states) != len(bodies):
        raise CheckpointError(path, f"has {len(states)} bodies, but is to fill {len(bodies)}")
    try:
        for body, found in zip(bodies, states, strict=True):
            backbones.fill_body(body, name, found)
    except RuntimeError as error:
        reason = checkpoints.first_lines(error)
        raise CheckpointError(path, f"does not fit a {name} body ({reason})") from error
