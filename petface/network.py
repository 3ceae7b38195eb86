"""A network ready to answer: on its device, with the preprocessing of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from petface import images
from petface.augment import normalise, to_float
from petface.devices import Precision, choose_device, choose_precision
from petface.errors import UserError
from petface.images import ImageSource, Preprocessing
from petface.models import backbones

Outputs = tuple[Tensor, ...]  # one (B, K) tensor of logits per head


class NonFiniteError(UserError):
    """A network answered with NaN or infinity: there is no class to name."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model of one head or several, and everything that its input and arithmetic depend on."""

    model: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    precision: Precision
    temperatures: tuple[float, ...] = ()  # per head, in the order of the outputs; empty = all 1

    @classmethod
    def build(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: str,
        precision: str,
        temperatures: tuple[float, ...] = (),
    ) -> Network:
        """Put `model` on the device and in the precision that settings name ("auto" and others)."""
        on = choose_device(device)
        return cls(model, preprocessing, on, choose_precision(precision, on), temperatures)

    def __post_init__(self) -> None:
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}"

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Give the gradient scaler that the precision needs; one that does nothing for most."""
        return self.precision.grad_scaler(self.device)

    def __call__(self, x: Tensor) -> Outputs:
        """(B, 3, H, W) float in [0, 1] -> logits of each head, in the network's precision."""
        x = normalise(x, self.preprocessing.mean, self.preprocessing.std)
        with self.precision.autocast(self.device):
            out = self.model(x)
        return (out,) if isinstance(out, Tensor) else out

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> Outputs:
        """(B, 3, H, W) uint8 on the device -> (B, K) float32 logits per head."""
        return tuple(head.float() for head in self(to_float(batch)))

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the CPU."""
        outputs = self.logits(pixels.permute(0, 3, 1, 2).to(self.device))
        return tuple(logits.cpu() for logits in outputs)

    @torch.inference_mode()
    def logits_and_means(self, pixels: Tensor, backbone: str) -> tuple[Outputs, Tensor]:
        """(B, size, size, 3) uint8 -> the logits of a classifier and, from the same pass, its
        stage means (B, D) float32; on the CPU.
        """
        batch = pixels.permute(0, 3, 1, 2).to(self.device)
        x = normalise(to_float(batch), self.preprocessing.mean, self.preprocessing.std)
        with self.precision.autocast(self.device):
            logits, maps = backbones.forward_with_maps(self.model, backbone, x)
        return (logits.float().cpu(),), backbones.stage_means(maps).cpu()

    def probabilities(self, outputs: Outputs) -> Outputs:
        """Give softmax(logits / temperature) per head; NaN where a photo's logits are not
        finite.
        """
        rows = []
        for logits, temperature in zip(
            outputs, self.temperatures or (1.0,) * len(outputs), strict=True
        ):
            finite = torch.isfinite(logits).all(dim=1, keepdim=True)
            p = (logits / temperature).softmax(dim=1)
            rows.append(torch.where(finite, p, torch.nan))
        return tuple(rows)

    def answer(self, image: ImageSource) -> Outputs:
        """Decode one image and give (K,) probabilities per head; raises `NonFiniteError`."""
        return self._first_photo(self.answer_pixels(self._decode(image)))

    def answer_with_means(self, image: ImageSource, backbone: str) -> tuple[Outputs, Tensor]:
        """Do what `answer` does with a classifier, and give its stage means (1, D) beside it."""
        outputs, means = self.logits_and_means(self._decode(image), backbone)
        return self._first_photo(outputs), means

    def _decode(self, image: ImageSource) -> Tensor:
        rule = self.preprocessing
        pixels = images.resize(images.decode(image), rule.size_px, rule.resize)
        return torch.from_numpy(pixels)[None]

    def _first_photo(self, outputs: Outputs) -> Outputs:
        heads = tuple(p[0] for p in self.probabilities(outputs))
        if any(bool(torch.isnan(head).any()) for head in heads):
            raise NonFiniteError("the network's answer is not finite; check the checkpoint")
        return heads
