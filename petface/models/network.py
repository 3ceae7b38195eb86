"""A network ready to answer: on its device, with the preprocessing of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from petface.data.images import Preprocessing, normalise, to_float
from petface.devices import (
    Precision,
    choose_device,
    choose_precision,
    is_out_of_memory,
    set_arithmetic,
    to_device,
)
from petface.errors import UserError

NOT_FINITE = "the network's answer is not finite; check the checkpoint"
_CPU_PIXELS = 8 * 224 * 224  # at once: what passes between layers stays in the cache
Outputs = tuple[Tensor, ...]  # one (B, K) tensor of logits per head


class NonFiniteError(UserError):
    """A network predicted NaN or infinity: there is no class to name."""


class Answerer(Protocol):
    """What answers batches of pixels: a `Network`, views of one, an exported model."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images must be prepared."""

    @property
    def temperatures(self) -> tuple[float, ...]:
        """What the logits of each head are divided by; empty = all 1."""

    @property
    def device(self) -> torch.device:
        """Where answers are, and pixels are best."""

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the device."""


@dataclass(eq=False)
class Network:
    """A model of one head or several, and everything that its input and arithmetic depend on."""

    model: nn.Module
    preprocessing: Preprocessing
    device: torch.device
    precision: Precision
    temperatures: tuple[float, ...] = ()  # per head, in the order of the outputs; empty = all 1
    is_cast: bool = False  # the convolutions hold the precision's type: no autocast needed
    max_rows: int | None = None  # at once in `answer_pixels`; found where memory runs out

    @classmethod
    def build(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: str,
        precision: str,
        temperatures: tuple[float, ...] = (),
        compiled: bool = False,
    ) -> Network:
        """Move `model` to the device and the precision that settings name ("auto" and others).

        `compiled`: by torch's compiler, at the first batch of a kind.
        """
        on = choose_device(device)
        set_arithmetic(exact=False)
        if compiled:
            model.compile()
        return cls(model, preprocessing, on, choose_precision(precision, on), temperatures)

    @classmethod
    def for_inference(
        cls,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: str,
        precision: str,
        temperatures: tuple[float, ...] = (),
        compiled: bool = False,
    ) -> Network:
        """Build a network that is never trained: BatchNorm folded, convolutions cast once.

        Its linear heads compute in float32, so that close classes do not tie. `compiled`: by
        torch's compiler, at the first batch.
        """
        num_left = fold_batchnorm(model.requires_grad_(False))
        network = cls.build(model, preprocessing, device, precision, temperatures)
        set_arithmetic(exact=True)
        dtype = network.precision.dtype
        if dtype is not None and not num_left:
            network.is_cast = True
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(dtype)
                elif isinstance(module, nn.Linear):
                    module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
        if network.device.type == "cpu":
            network.max_rows = max(1, _CPU_PIXELS // preprocessing.size_px**2)
        if compiled:
            model.compile(dynamic=True, options={"freezing": True})
        return network

    def __post_init__(self) -> None:
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}"

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler that the precision needs; for most it does nothing."""
        return self.precision.grad_scaler(self.device)

    def __call__(self, x: Tensor) -> Outputs:
        """(B, 3, H, W) float in [0, 1] -> logits of each head, in the network's precision."""
        return self.forward(self.prepare(x))

    def prepare(self, x: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) float in [0, 1], in the type of convolutions."""
        x = normalise(x, self.preprocessing.mean, self.preprocessing.std)
        return x.to(self.precision.dtype or x.dtype)

    def unprepared(self, x: Tensor) -> Tensor:
        """Return what `prepare` was given, but for its rounding."""
        rule, x = self.preprocessing, x.float()
        std, mean = x.new_tensor((rule.std or (1, 1, 1), rule.mean or (0, 0, 0))).view(2, 3, 1, 1)
        return x * std + mean

    def forward(self, x: Tensor) -> Outputs:
        """(B, 3, H, W) prepared -> logits of each head."""
        with nullcontext() if self.is_cast else self.precision.autocast(self.device):
            out = self.model(x)
        return (out,) if isinstance(out, Tensor) else out

    def logits(self, batch: Tensor) -> Outputs:
        """(B, 3, H, W) uint8 -> (B, K) float32 logits per head, on the device.

        Where the device's memory does not hold the batch, it is halved; later batches too.
        """
        while True:
            most = max(1, min(len(batch), self.max_rows or len(batch)))
            pieces = batch.tensor_split(max(1, -(-len(batch) // most)))
            try:
                on_device = (to_float(to_device(piece, self.device)) for piece in pieces)
                with torch.inference_mode():
                    parts = [[head.float() for head in self(piece)] for piece in on_device]
                return tuple(torch.cat(output) for output in zip(*parts, strict=True))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if most == 1:
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    raise UserError(
                        f"not enough memory on {self.device} for one image ({reason})"
                    ) from error
            self.max_rows = (most + 1) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def answer_pixels(self, pixels: Tensor) -> Outputs:
        """(B, size, size, 3) uint8 -> (B, K) float32 logits per head, on the device."""
        return self.logits(pixels.permute(0, 3, 1, 2))


def begin_copy(heads: Outputs) -> Callable[[], Outputs]:
    """Start to move logits of any shapes to the CPU in one copy; what is returned waits for it."""
    if {head.device.type for head in heads} != {"cuda"}:
        here = tuple(head.cpu() for head in heads)
        return lambda: here
    packed = torch.cat([head.flatten() for head in heads])
    copy = torch.empty(packed.shape).pin_memory().copy_(packed, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(packed.device))
    shapes = [head.shape for head in heads]

    def arrive() -> Outputs:
        arrived.synchronize()
        parts = copy.split([shape.numel() for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    return arrive


def tempered(outputs: Outputs, temperatures: tuple[float, ...]) -> Outputs:
    """Return softmax(logits / temperature) per head; NaN where a photo's logits are not finite.

    No temperature at all means 1 for every head.
    """
    rows = []
    for logits, temperature in zip(outputs, temperatures or (1.0,) * len(outputs), strict=True):
        finite = torch.isfinite(logits).all(dim=1, keepdim=True)
        rows.append(torch.where(finite, (logits / temperature).softmax(dim=1), torch.nan))
    return tuple(rows)


def fold_batchnorm(model: nn.Module) -> int:
    """Fold each BatchNorm after a convolution into it, in place; return how many norms are left.

    For a model in evaluation mode that is never trained again: convolutions get a bias, an identity
    takes the place of the BatchNorm, all names stay. A model that cannot be traced is left alone.
    """
    assert not model.training, "statistics still move: folding would freeze them"
    nodes: Any = ()
    with suppress(fx.proxy.TraceError):
        nodes = fx.Tracer().trace(model).nodes
    modules = dict(model.named_modules())
    for node in nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        before = node.args[0]
        conv = modules.get(before.target) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            model.set_submodule(before.target, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(node.target, nn.Identity())
    kinds = nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm
    return sum(isinstance(m, kinds) for m in model.modules())
