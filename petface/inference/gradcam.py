"""Grad-CAM: which places of a photo speak for an answer.

Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2: a_k = mean over the places of
d(logit of the class) / d(map k), and the picture is ReLU(sum over k of a_k map k). One number per
cell of the network's maps, so a map of 7x7 cells cannot show more than rough places.
"""

from __future__ import annotations

import io
import math
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from petface.data import images
from petface.data.images import ImageSource, to_float
from petface.errors import UserError
from petface.models.architecture import bodies_of
from petface.models.backbones import STAGE_NAMES, stage_end
from petface.models.network import NOT_FINITE, Network, NonFiniteError

Map = npt.NDArray[np.float32]
LAST: Final = STAGE_NAMES[-1]
MIN_CELLS: Final = 4  # along a side: fewer show no places at all
_HEAT = np.array([(30, 30, 160), (0, 190, 220), (250, 220, 40), (220, 20, 20)], np.float32)


def gradcams(
    network: Network, pixels: Tensor, head: int, classes: np.ndarray, layer: str = LAST
) -> Map:
    """Compute what speaks for a class of each photo, (B,): (B, H, W, 3) uint8 -> (B, H, W) in 0..1.

    `head` is the place of the head among the outputs (0 for the species). The highest value of a
    photo is 1; all are 0 where nothing speaks for the class. Of several bodies, all maps count.
    """
    size = pixels.shape[1:3]
    maps: list[Tensor] = []  # of each body
    caller = threading.get_ident()

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != caller:  # another thread of a server uses the same network
            return None
        maps.append(output.detach().requires_grad_())
        return maps[-1]

    handles = [end.register_forward_hook(keep) for end in stage_ends(network.model, layer)]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            batch = pixels.permute(0, 3, 1, 2).to(network.device)
            logits = network(to_float(batch))[head]
            wanted = torch.from_numpy(np.asarray(classes, np.int64)).to(network.device)
            # photos do not see each other in eval mode: one gradient serves the whole batch
            score = logits.float().gather(1, wanted[:, None]).sum()
            slopes = torch.autograd.grad(score, maps)
    finally:
        for handle in handles:
            handle.remove()
    weighted = [
        (slope.float().mean(dim=(2, 3), keepdim=True) * one.detach().float()).sum(1)
        for slope, one in zip(slopes, maps, strict=True)
    ]
    cam = enlarge(torch.stack(weighted).sum(0).relu(), size[0], size[1])
    highest = cam.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(highest > 0, cam / highest.clamp_min(1e-20), torch.zeros_like(cam))
    return scaled.cpu().numpy()


def enlarge(cams: Tensor, height: int, width: int) -> Tensor:
    """Spread the cells (B, h, w) over the photo, linearly: (B, height, width).

    Every stride of all backbones stands at an odd kernel with equal padding, so cell i looks at
    the surroundings of pixel i * stride, not of the middle of the i-th of h equal parts (Araujo et
    al. 2019, Computing Receptive Fields of Convolutional Neural Networks, Distill). The usual
    `interpolate` moves maps right and down by half a cell, 16 of 224 px.
    """
    rows = _cell_weights(cams.shape[1], height).to(cams.device)
    columns = _cell_weights(cams.shape[2], width).to(cams.device)
    return rows @ cams @ columns.T


def _cell_weights(num: int, side: int) -> Tensor:
    """Weight of each cell in each pixel, (side, num); beyond the last cell its value goes on."""
    stride = 2 ** math.ceil(math.log2(side / num))
    place = (torch.arange(side) / stride).clamp(max=num - 1)
    return (1 - (place[:, None] - torch.arange(num)).abs()).clamp(min=0)


def stage_ends(model: nn.Module, layer: str) -> list[nn.Module]:
    """Find the module that ends a stage, one of `STAGE_NAMES`, in each body of our networks."""
    try:
        return [stage_end(body, layer) for body in bodies_of(getattr(model, "body", model))]
    except UserError as error:
        raise UserError(f"Grad-CAM {error}") from error


def finest_useful_layer(network: Network) -> tuple[str, int]:
    """Return the last stage whose maps have `MIN_CELLS` a side, and how many they have.

    All backbones halve the sides from stage to stage: 7x7 cells of a 224 px photo, 2x2 of a 64 px
    photo; there an earlier stage must serve, which knows less of classes and more of places.
    """
    side = network.preprocessing.size_px
    cells = {layer: -(-side // 2**k) for k, layer in enumerate(STAGE_NAMES, start=1)}
    useful = [layer for layer in STAGE_NAMES if cells[layer] >= MIN_CELLS]
    layer = useful[-1] if useful else STAGE_NAMES[0]
    return layer, cells[layer]


def overlay(photo: np.ndarray, cam: Map) -> np.ndarray:
    """Draw a map over its photo, (H, W, 3) uint8: the stronger a place, the denser its colour."""
    density = (0.65 * np.sqrt(cam))[:, :, None]
    steps = np.linspace(0, 1, len(_HEAT))  # from blue over cyan and yellow to red
    heat = np.stack([np.interp(cam, steps, channel) for channel in _HEAT.T], axis=-1)
    return np.rint(photo * (1 - density) + np.rint(heat) * density).astype(np.uint8)


def overlay_png(
    network: Network, image: ImageSource, head: int = 0, class_index: int | None = None
) -> bytes:
    """Explain one photo as a PNG at the network's size; without a class, the predicted one."""
    rule = network.preprocessing
    pixels = images.resize(images.decode(image), rule.size_px, rule.resize)
    layer, _ = finest_useful_layer(network)
    batch = torch.from_numpy(pixels)[None]
    if class_index is None:
        logits = network.answer_pixels(batch)[head]
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(NOT_FINITE)
        class_index = int(logits.argmax())
    (cam,) = gradcams(network, batch, head, np.array([class_index]), layer)
    stream = io.BytesIO()
    Image.fromarray(overlay(pixels, cam)).save(stream, format="PNG")
    return stream.getvalue()
