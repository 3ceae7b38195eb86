"""A body that turns a photo into an embedding; two photos of one animal point the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from petface.models.architecture import PLAIN, Architecture, build_body, build_head
from petface.models.checkpoints import (
    Checkpoint,
    CheckpointError,
    fill,
    fingerprint_in,
    read_architecture,
    read_preprocessing,
    weights_in,
)

MAX_EMBEDDING = 4096  # a limit for what an untrusted checkpoint may want to have built


class EmbeddingModel(nn.Module):
    """(B, 3, H, W) float -> unit embeddings (B, D); in training the cosines to each animal (B, K).

    `size` D of the embedding, 0 = the pooled features themselves. Each of the `num_animals` K that
    are learnt has a direction of its own, as a class of a classifier has; 0 = none is built.
    """

    def __init__(self, size: int, num_animals: int, architecture: Architecture = PLAIN) -> None:
        super().__init__()
        self.architecture, self.size = architecture, size
        self.body = build_body(architecture)
        self.heads = nn.ModuleDict()
        if size:
            self.heads["embedding"] = build_head(architecture, size)
        if num_animals:
            self.heads["animals"] = _Directions(size or architecture.width, num_animals)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return embeddings, or in training cosines, as the outputs of one head."""
        x = self.body(images)
        if self.size:
            x = self.heads["embedding"](x)
        x = x.float()
        # As functional.normalize, but without its shapes: other runtimes know fewer operators.
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return (self.heads["animals"](x) if self.training else x,)


class _Directions(nn.Module):
    """One direction for each animal: unit vectors (B, D) -> their cosines to each (B, K)."""

    def __init__(self, size: int, num_animals: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_animals, size) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) of length 1 -> (B, K) in [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 knows cosines to 3 digits
            return functional.linear(x, functional.normalize(self.weight))


def keep_distances(model: EmbeddingModel) -> None:
    """Begin with an embedding that keeps the distances of the features as well as it can.

    Its last layer becomes orthogonal, so that training starts at what the body knows already.
    """
    if model.size:
        last = [m for m in model.heads["embedding"].modules() if isinstance(m, nn.Linear)][-1]
        nn.init.orthogonal_(last.weight)
        nn.init.zeros_(last.bias)


@dataclass(frozen=True)
class IdentityCheckpoint(Checkpoint):
    """An identity network without its training's animals, in evaluation mode."""

    threshold: float | None = None  # of the similarity of two photos, found on the validation split
    false_match_rate: float | None = None  # of pairs of two animals there that reach it


def read_identity(path: str | Path, content: Mapping[str, Any]) -> IdentityCheckpoint:
    """Read an identity network from what `checkpoints.load` gave.

    `CheckpointError` with file and reason.
    """
    size, architecture = content.get("embedding_size"), read_architecture(path, content)
    if type(size) is not int or not 0 <= size <= MAX_EMBEDDING:
        what = f'"embedding_size" is {str(size)[:40]}, not a whole number up to {MAX_EMBEDDING}'
        raise CheckpointError(path, what, "take the best.pt of train_identity.py")
    state = weights_in(path, content)
    state = {n: t for n, t in state.items() if not n.startswith("heads.animals.")}
    with torch.device("meta"):
        model = EmbeddingModel(size, 0, architecture)
    fill(path, model, state)
    rule, data = read_preprocessing(path, content), fingerprint_in(path, content)
    heads = {"embedding": tuple(map(str, range(size or architecture.width)))}  # have no names
    sources, fitted = {"embedding": "index"}, read_matching(path, content)
    return IdentityCheckpoint(heads, sources, rule, {}, model, architecture, *fitted, data=data)


def read_matching(
    path: str | Path, content: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Read threshold and rate of false matches from a checkpoint or a card; None = not found yet.

    `CheckpointError` where they are no numbers of their range.
    """
    fitted = content.get("matching", {})
    known = fitted if isinstance(fitted, dict) else {"threshold": fitted}
    threshold, rate = (known.get(n) for n in ("threshold", "false_match_rate"))
    if not all(n is None or (type(n) is float and abs(n) < 1.01) for n in (threshold, rate)):
        raise CheckpointError(path, '"matching" makes no sense', "copy the file again")
    return threshold, rate
