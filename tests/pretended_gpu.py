"""A GPU pretended on the CPU: who would launch, wait and upload, and who mixes devices.

Tensors say "cuda:0", hold real values and compute on the CPU. What a GPU refuses is refused: a
kernel over tensors of both devices, `.numpy()`, a generator of the CPU. Launches, waits and uploads
are counted with the line of the project that caused them. Streams, threads and the time that things
take are not pretended.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode

from petface import devices
from petface.training import step
from petface.training.augment import exact

ROOT = str(Path(__file__).resolve().parents[1])
GPU = torch.device("cuda", 0)
PLAIN = torch._C.DisableTorchFunctionSubclass
READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"}
WAITS = {  # the size of the result is only known on the device
    *("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"),
    *("aten::repeat_interleave.Tensor", "aten::bincount"),
}
NO_KERNEL = {
    *("aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty"),
    *("aten::new_empty_strided", "aten::detach", "aten::alias", "aten::lift_fresh"),
    *("aten::resize_", "aten::set_.source_Tensor", "aten::is_same_size"),
}
# Triton kernels that torch 2.15 makes for an H100: 7 and two convolutions of a blurred batch, 5 of
# the loss of one head, 21 of three, 24 where they are mixed.
KERNELS = {
    "_on_gpu": lambda *values: 9 if values[-1] else 4,
    "_differentiate": lambda _, outputs, batches, *__: (
        5 if len(outputs) == 1 else 7 * len(outputs) + 3 * (len(batches) - 1)
    ),
}
MASKED = {"aten::index.Tensor", "aten::index_put_", "aten::index_put"}


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU; `inner` has its values."""

    inner: torch.Tensor
    device = property(lambda _: GPU)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"OnGpu({tuple(self.inner.shape)}, {self.inner.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, of = kwargs or {}, torch.Tensor
        with PLAIN():
            if func in (of.numpy, of.__array__):
                raise TypeError("PLACEMENT: a tensor of the GPU does not convert to numpy")
            if func is of.cpu:
                return _moved(args[0], None)
            if func is of.tolist:
                return _moved(args[0], None).tolist()
            if func is of.is_pinned:
                return False
            if getattr(func, "__name__", "") == "to":
                return _to(func, *args, **kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _gpus[-1]:
            return func(*args, **(kwargs or {}))


_gpus: list[PretendedGpu] = []
_is_leaving = False  # a copy to the CPU that was asked for; others of that kind are torch's own


def _moved(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    global _is_leaving
    _is_leaving = True
    try:
        return torch.ops.aten._to_copy(tensor, dtype=dtype, device=torch.device("cpu"))
    finally:
        _is_leaving = False


def _to(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    device, rest = kwargs.pop("device", None), []
    for value in args:
        if isinstance(value, str | torch.device):
            device = value
        elif isinstance(value, torch.Tensor):
            device, rest = value.device, [*rest, value.dtype]
        elif not isinstance(value, bool):
            rest.append(value)
    if device is None:
        return func(tensor, *args, **kwargs)
    kwargs.pop("non_blocking", None)
    if torch.device(device).type == "cpu":
        callers = [frame.filename for frame in traceback.extract_stack()[:-1]]
        asked_by = next(name for name in reversed(callers) if name != __file__)
        if "/torch/" in asked_by:  # which was told by C++ that this is a tensor of the CPU
            return tensor
        return _moved(tensor, rest[0] if rest else kwargs.get("dtype"))
    has_more = rest or any(value is not None for value in kwargs.values())
    return func(tensor, *rest, **kwargs) if has_more else tensor


class PretendedGpu(TorchDispatchMode):
    """The counts, by the line of the project: `launches`, `waits`, `uploads`, `pageable` ones."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: dict[int, torch.Tensor] = {}
        self.graph: _Graph | None = None  # that is being recorded
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.later: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()

    def __enter__(self) -> PretendedGpu:
        _gpus.append(self)
        super().__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        _gpus.pop()
        super().__exit__(*what)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone(memory_format=torch.preserve_format)
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def _upload(self, source: torch.Tensor, non_blocking: bool) -> None:
        where = _where()
        assert self.graph is None, f"a graph uploads the same for ever, {where}"
        self.uploads[where] += 1
        if source.numel() > 1 and source.untyped_storage().data_ptr() not in self.pinned:
            self.pageable[where] += 1
        if not non_blocking:
            self.waits[f"upload, {where}"] += 1

    def _wait(self, what: str) -> None:
        assert self.graph is None, f"a graph cannot wait: {what}, {_where()}"
        self.waits[f"{what}, {_where()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        if func._schema.overload_name:
            name += f".{func._schema.overload_name}"
        flat, spec = pytree.tree_flatten((args, kwargs))
        has_gpu = any(isinstance(value, OnGpu) for value in flat)
        target = kwargs.get("device")
        wants_gpu = target is not None and torch.device(target).type == "cuda"
        if not has_gpu and target is not None and torch._C._current_graph_task_id() != -1:
            wants_gpu = True  # made by the backward pass, which is told the wrong device
        if name in READS and has_gpu:
            self._wait("read")
            return func(args[0].inner)
        if name == "aten::_to_copy":
            return self._copy(func, args[0], wants_gpu, target, kwargs)
        if name == "aten::copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
            non_blocking = bool((*args[2:], kwargs.get("non_blocking", False))[0])
            if isinstance(args[0], OnGpu):
                self._upload(args[1], non_blocking)
                args[0].inner.copy_(args[1])
            else:
                is_pinned = args[0].untyped_storage().data_ptr() in self.pinned
                if not (non_blocking and is_pinned):
                    self._wait("copy to the CPU")
                args[0].copy_(args[1].inner)
            return args[0]
        if not has_gpu and not wants_gpu:
            return func(*args, **kwargs)
        self._check(name, flat, args)
        inner = [value.inner if isinstance(value, OnGpu) else value for value in flat]
        inner = [torch.device("cpu") if _is_gpu(value) else value for value in inner]
        found_args, found_kwargs = pytree.tree_unflatten(inner, spec)
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if self.graph is not None and not is_view and name not in NO_KERNEL:
            out = self.graph.note(func, found_args, found_kwargs)
        else:
            out = func(*found_args, **found_kwargs)
        if not is_view and name not in NO_KERNEL:
            self.launches[name] += 1
        before = {id(value.inner): value for value in flat if isinstance(value, OnGpu)}

        def dressed(value: torch.Tensor) -> OnGpu:
            return before[id(value)] if id(value) in before else OnGpu(value)

        return pytree.tree_map_only(torch.Tensor, dressed, out)

    def _copy(self, func: Any, source: Any, wants_gpu: bool, target: Any, kwargs: Any) -> Any:
        is_here = isinstance(source, OnGpu)
        stays = is_here and (target is None or wants_gpu or not _is_leaving)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        non_blocking = kwargs.pop("non_blocking", False)
        out = func(source.inner if is_here else source, **kwargs)
        if stays:
            if self.graph is not None:
                out = self.graph.note(func, (source.inner,), kwargs)
            self.launches["aten::_to_copy"] += 1
            return OnGpu(out)
        if is_here:
            self._wait("copy to the CPU")
            return out
        if wants_gpu:
            self._upload(source, non_blocking)
            return OnGpu(out)
        return out

    def _check(self, name: str, flat: list[Any], args: Any) -> None:
        """Refuse what a GPU refuses; note what it would wait for."""
        if any(isinstance(value, torch.Generator) for value in flat):
            raise RuntimeError(f"PLACEMENT: a generator of the CPU for {name}, {_where()}")
        others = [v for v in flat if isinstance(v, torch.Tensor) and not isinstance(v, OnGpu)]
        if any(value.dim() for value in others):
            if name != "aten::index.Tensor":
                raise RuntimeError(f"PLACEMENT: {name} mixes devices, {_where()}")
            self._wait("index of the CPU")
        if name in WAITS:
            self._wait(name)
        if name in MASKED:
            index = [value for value in pytree.tree_leaves(args[1]) if value is not None]
            if any(value.dtype in (torch.bool, torch.uint8) for value in index):
                self._wait("mask")


def _is_gpu(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _where() -> str:
    """Name the innermost line of the project, tests aside."""
    for frame in reversed(traceback.extract_stack()):
        name = frame.filename  # an environment lies in ROOT, too
        if re.match(f"{ROOT}/(?!tests/|.*site-packages)", name):
            return f"{name[len(ROOT) + 1 :]}:{frame.lineno} {frame.line}"
    return "tests"


class _Graph:
    """A CUDA graph: operations on the same memory again; a recording leaves none of its traces."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Any, Any]] = {}  # of all memory that was touched

    def note(self, func: Any, args: Any, kwargs: Any) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                memory = value.untyped_storage()
                self.before.setdefault(memory.data_ptr(), (memory, memory.clone()))
        out = func(*args, **kwargs)
        self.done.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        _gpus[-1].launches["graph"] += 1
        for func, args, kwargs, out in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def pool(self) -> tuple[int, int]:
        return (0, 1)


@contextmanager
def _recording(graph: _Graph, *_: Any, **__: Any) -> Iterator[None]:
    gpu = _gpus[-1]
    launches, drawn, gpu.graph = gpu.launches.copy(), torch.get_rng_state(), graph
    try:
        yield
    finally:
        torch.set_rng_state(drawn)
        gpu.launches, gpu.graph = launches, None
        for memory, copy in graph.before.values():
            memory.copy_(copy)


class _Nothing:
    """A stream or an event; `later` counts who waits for what was begun before."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = GPU

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def synchronize(self) -> None:
        _gpus[-1].later[_where()] += 1

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: True


@contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Let torch say that there is a GPU."""
    gpu, plain_to, autocast = PretendedGpu(), torch.Tensor.to, torch.autocast

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        args = tuple(GPU if _names_gpu(value) else value for value in args)
        kwargs = {name: GPU if _names_gpu(value) else value for name, value in kwargs.items()}
        if isinstance(self, OnGpu):
            return OnGpu.__torch_function__(plain_to, (OnGpu,), (self, *args), kwargs)
        return plain_to(self, *args, **kwargs)

    class OfCpu(autocast):  # type: ignore[misc,valid-type]
        def __init__(self, _: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu", *args, **kwargs)

    state = torch.get_rng_state()
    of_cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "pretended",
        "Stream": _Nothing,
        "Event": _Nothing,
        "stream": _Nothing,
        "current_stream": _Nothing,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: gpu._wait("synchronize"),
        "manual_seed": lambda _: None,
        "get_rng_state": lambda *_: state,
        "set_rng_state": lambda *_: None,
        "is_current_stream_capturing": lambda: gpu.graph is not None,
        "CUDAGraph": _Graph,
        "graph": _recording,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_cuda.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "autocast", OfCpu)
        patch.setattr(torch, "compile", _compile)
        for compiled in (exact._on_gpu, step._differentiate):
            patch.setattr(compiled, "_used", None)
        patch.setattr(torch, "inference_mode", _no_grad)  # which wrapped tensors cannot live in
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "pin_memory", lambda self, *_: gpu.pin(self))
        patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        health = "_accelerator_graph_capture_health_check"
        patch.setattr(torch.optim.Optimizer, health, lambda _: None, raising=False)
        patch.setattr("petface.data.loading.in_thread", lambda items, _: items)
        devices.uploaded.cache_clear()
        if OnGpu not in _foreach_supported_types:
            _foreach_supported_types.append(OnGpu)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with gpu:
                yield gpu
        finally:
            devices.uploaded.cache_clear()
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _compile(function: Any, **_: object) -> Any:
    """Pretend to compile: as many launches as the compiler makes kernels of it."""

    def compiled(*values: Any) -> Any:
        gpu = _gpus[-1]
        before = gpu.launches.copy()
        out = function(*values)
        gpu.launches = before
        gpu.launches[f"compiled {function.__name__}"] += KERNELS[function.__name__](*values)
        return out

    return compiled


def _no_grad(mode: bool = True) -> Any:
    return torch.no_grad() if mode else torch.enable_grad()


def _names_gpu(value: object) -> bool:
    return _is_gpu(value) or (isinstance(value, str) and value.startswith("cuda"))
