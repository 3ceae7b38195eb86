"""Features of photos from the body of a trained network, for what is learnt on top of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from petface.data.images import normalise, to_float
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.models.multi_body import forward_with_maps
from petface.models.network import Network

NUM_STAGES = 3  # of four: the last one knows the species and little else


def pooled_maps(network: Network, body: Any, pixels: Tensor, grid: int) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, D) float32 on the CPU: the maps of layer1 to layer3, each averaged
    over grid x grid cells, because it matters where in a face something is.

    `body` is a classifier or a body, on the network's device.
    """
    rule = network.preprocessing
    x = to_float(pixels.permute(0, 3, 1, 2).to(network.device))
    x = normalise(x, rule.mean, rule.std)
    with torch.inference_mode(), network.precision.autocast(network.device):
        _, maps = forward_with_maps(body, x)
    cells = [
        functional.adaptive_avg_pool2d(stage.float(), grid).flatten(1)
        for stage in maps[:NUM_STAGES]
    ]
    return torch.cat(cells, dim=1).cpu()


def features_of_photos(
    network: Network,
    body: Any,
    source: FileImages,
    places: np.ndarray,
    *,
    grid: int,
    batch_size: int,
    num_workers: int,
    title: str = "features",
) -> tuple[np.ndarray, np.ndarray]:
    """Give `pooled_maps` of the readable images at `places` (n,) of the catalog.

    (m, D) float32, and which of the n were readable, (n,) bool. `source` has the network's rule.
    """
    body.eval()
    slices = even_slices(places, batch_size)
    rows, readable = [], [np.empty(0, bool)]
    with tqdm(total=len(places), desc=title, unit="img", leave=False, mininterval=0.5) as bar:
        for item in read_ahead(source, slices, num_workers):
            readable.append(item.status == OK)
            if len(item.arrays[0]):
                rows.append(pooled_maps(network, body, item.arrays[0], grid).numpy())
            bar.update(len(item.status))
    num_features = grid * grid * sum(body.architecture.map_channels[:NUM_STAGES])
    return np.concatenate([np.empty((0, num_features), np.float32), *rows]), np.concatenate(
        readable
    )
