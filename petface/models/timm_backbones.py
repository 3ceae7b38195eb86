"""Backbones of the package `timm`, by the name "timm/<model>": an extra, for hundreds of them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from petface.data.images import Preprocessing
from petface.errors import UserError, install_line
from petface.models.backbones import STAGE_NAMES, TIMM, Backbone

# What efficientnet_pytorch calls the layers of timm: outside of its one row of blocks, in a block
# without an expansion and in one with it.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_NARROW = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_NARROW |= {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_WIDE = _NARROW | {"_expand_conv": "conv_pw", "_project_conv": "conv_pwl"}
_WIDE |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}


class TimmBody(nn.Module):
    """A model of timm, and `fc` in its classifier's place: (B, 3, H, W) float -> (B, features)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        _outline(name)  # refuses what `create_model` would look for on a network or a disk
        self.timm: Any = _create(name)
        self.fc: nn.Module = nn.Identity()
        self.backbone = name

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, num_features), or what `fc` makes of it."""
        return self.fc(self.timm(x))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"backbones of timm need it: {install_line('timm')} ({error})") from error
    return timm


def _create(name: str, **how: Any) -> Any:
    return _timm().create_model(name.removeprefix(TIMM), num_classes=0, **how)


@lru_cache(maxsize=64)
def _outline(name: str) -> Any:
    """Build a model without weights; an unknown one is refused with the nearest names."""
    wanted = name.removeprefix(TIMM)
    model, _, tag = wanted.partition(".")
    known = _timm().list_pretrained(f"{model}.*") if tag else _timm().list_models()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known or _timm().list_models(), n=3)
        names = ", ".join(TIMM + one for one in near) or "see timm.list_models()"
        raise UserError(f"unknown backbone {name!r:.60}; nearest: {names}")
    with torch.device("meta"):
        return _create(name)


def describe(name: str) -> Backbone:
    """Look a model up in timm's own description of it."""
    network = _outline(name)
    cfg = network.pretrained_cfg
    return Backbone(
        getattr(network, "head_hidden_size", network.num_features),
        "fc",
        tuple(info["num_chs"] for info in _ends(network)[-4:]),
        made_for=Preprocessing(cfg["input_size"][-1], "stretch", cfg["mean"], cfg["std"]),
        is_size_fixed=bool(cfg.get("fixed_input_size")),
    )


def _ends(network: Any) -> list[dict[str, Any]]:
    """List what timm knows of the ends of stem (where it does) and layer1 to layer4.

    They are where the sides of the maps are halved next; of a transformer, whose sides stay, four
    blocks at equal distances.
    """
    infos = list(getattr(network, "feature_info", ()))
    of_side = {info["reduction"]: info for info in infos}  # the last of each
    if len(of_side) >= 4:
        return list(of_side.values())[-5:]
    return [infos[len(infos) * k // 4 - 1] for k in (1, 2, 3, 4)] if len(infos) >= 4 else []


@lru_cache(maxsize=64)
def stages(name: str) -> dict[str, str]:
    """Return the stage of each parameter: a model without stages is layer4 as a whole."""
    names = [key for key, _ in _outline(name).named_parameters()]
    ends = [f"{info['module']}." for info in _ends(_outline(name))]
    befores = [-1] * 4  # the last parameter of stem, layer1, layer2 and layer3
    if ends:
        last = {end: i for i, n in enumerate(names) for end in ends if n.startswith(end)}
        row = ends[-4].partition(".")[0] + "."  # of blocks: what stands before it is the stem
        before_row = next(i for i, n in enumerate(names) if n.startswith(row)) - 1
        early = [last.get(end, before_row) for end in ends[:-4]] or [before_row]
        befores = [*early, *(last[end] for end in ends[-4:-1])]
    return {f"timm.{n}": STAGE_NAMES[sum(i > b for b in befores)] for i, n in enumerate(names)}


def stage_end(body: Any, stage: str) -> nn.Module:
    """Find the module whose output is that of a stage; `UserError` where that is no map."""
    ends, number = _ends(body.timm), STAGE_NAMES.index(stage) - len(STAGE_NAMES)
    are_maps = getattr(body.timm, "output_fmt", "NCHW") == "NCHW"
    if not are_maps or len({info["reduction"] for info in ends}) < 4 or len(ends) < -number:
        raise UserError(f"needs the maps of {stage}: {body.backbone} is a transformer, of tokens")
    return body.timm.get_submodule(ends[number]["module"])


def own_names(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of one of timm's files as they are called in a `TimmBody`."""
    heads = _outline(name).pretrained_cfg["classifier"] or ()
    left_out = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    if "_conv_stem.weight" in state:
        state, left_out = _from_one_row(name, state), ("_fc.",)
    return {f"timm.{key}": tensor for key, tensor in state.items() if not key.startswith(left_out)}


def _from_one_row(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of efficientnet_pytorch as timm has them; what is unknown keeps its name."""
    if not name.startswith(f"{TIMM}tf_"):  # others fit, too, but pad and normalise in another way
        raise UserError(f"{name} is of other weights than the file: set BACKBONE to a {TIMM}tf_...")
    last, table = "conv_dw.weight", dict(_OUTSIDE)
    blocks = [key.removesuffix(last) for key in _outline(name).state_dict() if key.endswith(last)]
    for k, block in enumerate(blocks):
        kind = _WIDE if f"_blocks.{k}._expand_conv.weight" in state else _NARROW
        table |= {f"_blocks.{k}.{old}": block + new for old, new in kind.items()}
    parts = [(key.rpartition("."), tensor) for key, tensor in state.items()]
    return {f"{table.get(layer, layer)}.{kind}": tensor for (layer, _, kind), tensor in parts}


def fill_buffers(model: nn.Module) -> None:
    """Compute what a network that was built on "meta" computes of itself and no file has."""
    for body in [one for one in model.modules() if isinstance(one, TimmBody)]:
        if any(buffer.is_meta for buffer in body.buffers()):
            for key, buffer in TimmBody(body.backbone).named_buffers():
                parent, _, last = key.rpartition(".")
                if body.get_buffer(key).is_meta:
                    body.get_submodule(parent).register_buffer(last, buffer, persistent=False)


def hub_weights(name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the name of a model's weights and themselves, downloaded once; `OSError` if not."""
    import huggingface_hub as hub

    repository = _outline(name).pretrained_cfg.get("hf_hub_id")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each attempt is a line there
    try:
        if repository and not hub.try_to_load_from_cache(repository, "model.safetensors"):
            hub.HfApi().model_info(repository, timeout=10.0)  # it would try for 46 s
        state = _create(name, pretrained=True).state_dict()
    except Exception as error:  # whatever a client for HTTP, a hub or a damaged file raises
        raise OSError(str(error) or type(error).__name__) from error
    return f"timm {repository or name}", {f"timm.{key}": t for key, t in state.items()}
