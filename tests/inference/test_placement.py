"""Inference on a pretended GPU: everything runs where it should, and answers come back at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from petface.data.images import STATISTICS, Preprocessing
from petface.inference import gradcam
from petface.inference.views import AveragedViews
from petface.models.architecture import PLAIN, Architecture, build_classifier
from petface.models.multi_head import _MultiHeadModel
from petface.models.network import Network, begin_copy
from tests.pretended_gpu import pretended_gpu

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8))
HEADS = {"breed": 5, "color": 4, "gender": 2}


def network(precision="bf16", architecture=PLAIN, heads=None):
    torch.manual_seed(0)
    model = _MultiHeadModel(heads, architecture) if heads else build_classifier(architecture, 13)
    rule = Preprocessing(64, "stretch", *STATISTICS["imagenet"])
    return Network.for_inference(model.eval(), rule, "cuda", precision)


@pytest.mark.parametrize(
    "options",
    [
        *({"precision": name} for name in ("fp32", "bf16", "fp16")),
        {"heads": HEADS},
        *({"architecture": Architecture(name)} for name in ("mobilenet_v2", "efficientnet_b0")),
        {"architecture": Architecture("resnet18", "se", 8, 0.1, 2)},
    ],
    ids=str,
)
def test_a_batch_goes_up_once_and_its_answers_come_back_in_one_copy(options):
    with pretended_gpu() as gpu:
        asked = network(**options)
        asked.answer_pixels(PIXELS)  # uploads its constants
        gpu.clear()
        arrive = begin_copy(asked.answer_pixels(PIXELS))
        assert not (gpu.waits or gpu.later or gpu.pageable), (gpu.waits, gpu.pageable)
        answers = arrive()
        assert sum(gpu.uploads.values()) == sum(gpu.later.values()) == 1
        assert len(answers) == len(options.get("heads", "1"))
    wanted = [answer.shape[1] for answer in answers]
    assert wanted == (list(HEADS.values()) if "heads" in options else [13])


def test_views_and_gradcam_run_where_they_should():
    with pretended_gpu() as gpu:
        asked = network("fp32")
        asked.answer_pixels(PIXELS)  # uploads its constants
        views = AveragedViews(asked, "five")
        gpu.clear()
        (fused,) = views.answer_pixels(PIXELS)
        assert fused.shape == (4, 13) and not gpu.waits and sum(gpu.uploads.values()) == 1
        assert gradcam.overlay_png(asked, PIXELS[0].numpy(), 0, 1).startswith(b"\x89PNG")
        assert asked.answer(PIXELS[0].numpy())[0].shape == (13,)
