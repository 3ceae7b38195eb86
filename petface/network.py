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
        rule = self.preprocessing
        pixels = images.resize(images.decode(image), rule.size_px, rule.resize)
        batch = torch.from_numpy(pixels)[None]
        heads = tuple(p[0] for p in self.probabilities(self.answer_pixels(batch)))
        if any(bool(torch.isnan(head).any()) for head in heads):
            raise NonFiniteError("the network's answer is not finite; check the checkpoint")
        return heads
