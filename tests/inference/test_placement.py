"""Inference on a pretended GPU: everything runs where it should, and answers come back at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data.images import STATISTICS, Preprocessing
from petface.inference import gradcam, predict
from petface.inference.loading import AveragedViews
from petface.inference.two_stage import TwoStageInference
from petface.models.architecture import PLAIN, Architecture, _MultiHeadModel, build_classifier
from petface.models.network import Network, begin_copy
from tests import reference_networks as reference
from tests.inference.made_stages import write_chinchilla, write_stage1
from tests.naive import rows_of
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
        assert gradcam.overlay_png(asked, PIXELS[0].numpy()).startswith(b"\x89PNG")


@pytest.mark.parametrize("is_mixed", [False, True])
def test_both_stages_share_one_upload_of_a_slice_and_one_wait(tmp_path, monkeypatch, is_mixed):
    """Where not all photos are of one species, the specialist's rows go up beside the pixels."""
    rule, names = Preprocessing(32), []
    photos = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    (weight, bias), body = reference.linear_heads(species=3)["species"], reference.resnet18_body()
    images = torch.from_numpy(photos).permute(0, 3, 1, 2) / 255
    bias -= reference.reference_logits(images, {"species": (weight, bias)})["species"].mean(0)
    bias[1] += 0 if is_mixed else 1000
    write_stage1(tmp_path / "best.pt", {**body, "fc.weight": weight, "fc.bias": bias}, rule)
    write_chinchilla(tmp_path, rule)
    for number, pixels in enumerate(photos):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(names[-1])
    (tmp_path / "4.png").write_bytes(b"no photo")
    monkeypatch.setattr(predict, "SLICE_PHOTOS", 4)
    folder = tmp_path / "best.pt", tmp_path
    predict.predict_files(TwoStageInference(*folder, "cpu"), names, tmp_path / "cpu.csv")
    statuses = [row["status"] for row in rows_of(tmp_path / "cpu.csv")]
    parts = [set(statuses[k : k + 4]) - {"unreadable"} for k in (0, 4, 8)]
    num_mixed = sum(len(part) > 1 for part in parts)
    assert "unreadable" in statuses and (num_mixed > 0) == is_mixed, statuses
    with pretended_gpu() as gpu:
        engine = TwoStageInference(*folder, "cuda")
        engine.load_all()
        gpu.clear()
        predict.predict_files(engine, names, tmp_path / "gpu.csv")
        assert not gpu.waits and not gpu.pageable, (gpu.waits, gpu.pageable)
        assert sum(gpu.later.values()) <= 3 + 1, gpu.later  # the last slice's stages in turn
        assert sum(gpu.uploads.values()) == 3 + num_mixed, gpu.uploads
    assert (tmp_path / "gpu.csv").read_bytes() == (tmp_path / "cpu.csv").read_bytes()
