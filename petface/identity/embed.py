"""Turn photos into embeddings: by an identity network, or by the features of any other."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from petface import distributed
from petface.data.fingerprint import Data
from petface.data.images import Preprocessing
from petface.data.loading import OK, ImageReader, own_batches, uploaded
from petface.files import sha256_of_file
from petface.inference import onnx_models
from petface.inference.loading import ComputeOptions
from petface.models import checkpoints
from petface.models.architecture import Architecture
from petface.models.checkpoints import Checkpoint
from petface.models.embedding import EmbeddingModel, read_identity
from petface.models.first_weights import initialise_body
from petface.models.network import Answerer, Network, begin_copy
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

    def embed(self, source: ImageReader, places: np.ndarray, **named: Any) -> np.ndarray:
        """Embed the photos of `source` at `places` (n,): see `embed_photos`."""
        return embed_photos(self.network, source, places, **named)


def load_embedder(path: str | Path, options: ComputeOptions) -> Embedder:
    """Load an identity network, exported (also in a bundle) or not.

    Of the checkpoint of stage 1 or a specialist it takes the body, whose features embed.
    """
    network: Answerer
    if file := onnx_models.find(path, None, is_identity=True):
        exported = onnx_models.read(file, is_identity=True)
        fitted = exported.data, exported.threshold, exported.false_match_rate
        network = exported.network(options.device)
        return Embedder(network, str(path), sha256_of_file(file), *fitted)
    content = checkpoints.load(path)
    if content.get("kind") == "identity":
        own = read_identity(path, content)
        network = _network(own.model, own.preprocessing, options)
        fitted = own.data, own.threshold, own.false_match_rate
        return Embedder(network, str(path), sha256_of_file(path), *fitted)
    species = content.get("species")
    read = partial(checkpoints.read_stage2, species=species) if species else checkpoints.read_stage1
    found: Checkpoint = read(path)
    model = _headless(found.model, found.architecture)
    network = _network(model, found.preprocessing, options)
    return Embedder(network, str(path), sha256_of_file(path), found.data)


def backbone_features(
    backbone: str, weights: str, rule: Preprocessing, options: ComputeOptions
) -> Embedder:
    """Take the features of a backbone with first weights, which knows no single animal."""
    model = EmbeddingModel(0, 0, Architecture(backbone))
    origin = initialise_body(model.body, backbone, weights, "require")
    return Embedder(_network(model.eval(), rule, options), f"features of {backbone}, {origin}")


def _network(model: nn.Module, rule: Preprocessing, options: ComputeOptions) -> Network:
    how = options.device, options.precision, (), options.compiled
    return Network.for_inference(model, rule, *how)


def _headless(model: Any, architecture: Architecture) -> EmbeddingModel:
    """Keep the body of a classifier or of a specialist."""
    with torch.device("meta"):
        headless = EmbeddingModel(0, 0, architecture)
    state = getattr(model, "body", model).state_dict()
    own = headless.body.state_dict()
    headless.body.load_state_dict({name: state[name] for name in own}, assign=True)
    return headless.eval()


def embed_photos(
    network: Answerer,
    source: ImageReader,
    places: np.ndarray,
    *,
    batch_size: int,
    num_workers: int = 0,
    title: str = "embed",
    looks: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Embed the photos at `places` (n,) of the catalog: (n, D) float32, NaN where unreadable.

    Several processes share the photos, and all get every row. `looks` receives a 32x32 grey
    thumbnail and the sharpness of each photo, see `quality.look_at`.
    """
    slices = own_batches(np.arange(len(places)), batch_size)
    read = uploaded(source, [places[part] for part in slices], num_workers, network.device)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    if looks is not None:
        from petface.identity.quality import look_at
    with bar_of(title, len(places)) as bar, closing(read) as items:
        for part, item in zip(slices, items, strict=True):
            pixels, ok = item.arrays[0], item.status == OK
            if ok.any():
                rows.append((part[ok], begin_copy(network.answer_pixels(pixels))()[0].numpy()))
                if looks is not None:
                    seen.append((part[ok], look_at(pixels.cpu().numpy())))
            bar.update(len(part) * distributed.world_size())
    table = _joined(rows, len(places))
    if looks is not None:
        looks.append(_joined(seen, len(places)))
    return table


def _joined(own: list[tuple[np.ndarray, np.ndarray]], num: int) -> np.ndarray:
    """Lay the rows of all processes into one table (num, D), NaN where none has any."""
    every = [row for rows in distributed.gather_objects(own) for row in rows]
    table = np.full((num, every[0][1].shape[1] if every else 0), np.nan, np.float32)
    for part, values in every:
        table[part] = values
    return distributed.broadcast_object(table)
