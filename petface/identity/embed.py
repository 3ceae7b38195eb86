"""Turn photos into embeddings: by an identity network, or by the features of any other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petface import distributed
from petface.data.fingerprint import Data
from petface.data.images import Preprocessing
from petface.data.loading import OK, ImageReader, own_batches, uploaded
from petface.errors import UserError, short
from petface.files import sha256_of_file
from petface.inference import onnx_models
from petface.inference.loading import ComputeOptions
from petface.models import checkpoints, layouts
from petface.models.architecture import Architecture
from petface.models.embedding import EmbeddingModel, read_identity
from petface.models.first_weights import initialise_body
from petface.models.network import NOT_FINITE, Answerer, Network, begin_copy
from petface.training.evaluate import bar_of


@dataclass(eq=False)
class Embedder:
    """A network whose answers are unit embeddings, and what is known of it."""

    network: Answerer
    name: str
    sha256: str = ""  # of its file
    data: Data | None = None  # what it learnt from
    threshold: float | None = None  # two photos below this similarity are of two animals
    false_match_rate: float | None = None  # share of pairs of two animals that reach it

    def embed(
        self,
        source: ImageReader,
        places: np.ndarray,
        *,
        batch_size: int,
        num_workers: int = 0,
        title: str = "embed",
        look: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Embed the photos at `places` (n,) of a catalog: (n, D) float32.

        NaN where one is unreadable, (n, 1) where all are; infinite where the network's answer is
        not finite. Several processes share the photos, and all get every row. What `look` makes of
        pixels (B, S, S, 3) stands before the embedding, (n, L + D), in the first process alone.
        """
        slices, device = own_batches(np.arange(len(places)), batch_size), self.network.device
        read = uploaded(source, [places[part] for part in slices], num_workers, device)
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        with bar_of(title, len(places)) as bar, closing(read) as items:
            for part, item in zip(slices, items, strict=True):
                pixels, ok = item.arrays[0], item.status == OK
                if ok.any():
                    values = begin_copy(self.network.answer_pixels(pixels))()[0].numpy()
                    values[~np.isfinite(values).all(axis=1)] = np.inf
                    seen = [look(pixels.cpu().numpy())] if look else []
                    rows.append((part[ok], np.concatenate([*seen, values], axis=1)))
                bar.update(len(part) * distributed.world_size())
        every = [row for own in distributed.gather_objects(rows) for row in own]
        table = np.full((len(places), every[0][1].shape[1] if every else 1), np.nan, np.float32)
        for part, values in every:
            table[part] = values
        return table if look else distributed.broadcast_object(table)


def load_embedder(path: str | Path, options: ComputeOptions) -> Embedder:
    """Load an identity network, exported (also in a bundle) or not.

    Of the checkpoint of stage 1 or a specialist it takes the body, whose features embed.
    """
    found: Any
    how = options.device, options.precision, (), options.compiled
    if file := onnx_models.find(path, None, is_identity=True):
        found = onnx_models.read(file, is_identity=True)
        network: Answerer = found.network(options.device)
    elif (content := checkpoints.load(path)).get("kind") == "identity":
        found = read_identity(path, content)
        network = Network.for_inference(found.model, found.preprocessing, *how)
    else:
        species = content.get("species")
        found = layouts.read_stage2(path, species) if species else checkpoints.read_stage1(path)
        with torch.device("meta"):
            model = EmbeddingModel(0, 0, found.architecture)
        state = getattr(found.model, "body", found.model).state_dict()  # without its heads
        own = {name: state[name] for name in model.body.state_dict()}
        model.body.load_state_dict(own, assign=True)
        network = Network.for_inference(model.eval(), found.preprocessing, *how)
    fitted = (getattr(found, name, None) for name in ("threshold", "false_match_rate"))
    return Embedder(network, str(path), sha256_of_file(file or path), found.data, *fitted)


def backbone_features(
    backbone: str, weights: str, rule: Preprocessing, options: ComputeOptions
) -> Embedder:
    """Take the features of a backbone with first weights, which knows no single animal."""
    model = EmbeddingModel(0, 0, Architecture(backbone))
    origin = initialise_body(model.body, backbone, weights, "require")
    how = options.device, options.precision, (), options.compiled
    network = Network.for_inference(model.eval(), rule, *how)
    return Embedder(network, f"features of {backbone}, {origin}")


def checked(table: np.ndarray, name: str) -> np.ndarray:
    """Return embeddings (n, D); `UserError` where all are NaN, or one is infinite."""
    if np.isinf(table).any():
        raise UserError(f"{short(name)}: {NOT_FINITE}")
    if np.isnan(table).any(axis=1).all():
        raise UserError(f"none of {len(table)} photos can be read")
    return table
