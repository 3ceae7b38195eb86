"""Exported models in the runtimes that people have: the checkpoint's logits in each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from petface.models import checkpoints, layouts
from petface.models.embedding import read_identity
from petface.models.network import Network
from tests.made_bundle import made_bundle

Run = Callable[[Path, Sequence[str], np.ndarray], list[np.ndarray]]


def by_onnxruntime(path: Path, heads: Sequence[str], x: np.ndarray) -> list[np.ndarray]:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return session.run(list(heads), {"image": x})


def by_openvino(path: Path, heads: Sequence[str], x: np.ndarray) -> list[np.ndarray]:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # its default on some processors is bf16
    answered = openvino.Core().compile_model(str(path), "CPU", hint)(x)
    return [answered[head] for head in heads]


def by_opencv(path: Path, heads: Sequence[str], x: np.ndarray) -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(x, "image")
    return list(network.forward(list(heads)))


@pytest.mark.parametrize("run", [by_onnxruntime, by_openvino, by_opencv])
@pytest.mark.parametrize("name", ["stage1", "stage2/cat", "identity"])
def test_a_runtime_answers_as_the_checkpoint_does(tree, run: Run, name: str) -> None:
    runs, bundle = made_bundle(tree)
    content: checkpoints.Checkpoint = checkpoints.read_stage1(runs / "stage1/best.pt")
    if name == "stage2/cat":
        content = layouts.read_stage2(runs / "stage2/cat/cat_best.pt", "cat")
    elif name == "identity":
        content = read_identity("", checkpoints.load(runs / "identity/best.pt"))
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (5, 32, 32, 3), generator=draw, dtype=torch.uint8)
    expected = Network.for_inference(content.model, content.preprocessing, "cpu", "fp32")
    x = pixels.permute(0, 3, 1, 2).numpy().astype(np.float32) / 255
    for num in (5, 1):
        found = run(bundle / f"{name}.onnx", list(content.heads), np.ascontiguousarray(x[:num]))
        for one, other in zip(found, expected.answer_pixels(pixels[:num]), strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["stage1", "stage2/cat", "identity"])
def test_the_cards_test_vector_holds(tree, name: str) -> None:
    """As a program of somebody else would check it: by the card alone."""
    path = made_bundle(tree)[1] / f"{name}.onnx"
    card = json.loads(path.with_suffix(".json").read_text())
    assert {"OpenVINO", "OpenCV"} < {text.split()[0] for text in card["runtimes"]}
    vector, side = card["test_vector"], card["preprocessing"]["size_px"]
    photo = np.zeros(vector["photo"]["shape"], np.uint8)
    for row, column, channel in np.ndindex(*photo.shape):
        photo[row, column, channel] = (5 * row + 3 * column + 85 * channel) % 256
    assert hashlib.sha256(photo.tobytes()).hexdigest() == vector["photo"]["sha256"]
    assert card["resizing"].startswith("both sides to S px")
    resized = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR))
    assert hashlib.sha256(resized.tobytes()).hexdigest() == vector["resized"]["sha256"]
    for pixel in vector["resized"]["pixels"]:
        assert resized[pixel["row"], pixel["column"]].tolist() == pixel["rgb"]
    x = resized.transpose(2, 0, 1)[None].astype(np.float32) / 255
    for head, logits in zip(card["heads"], by_onnxruntime(path, card["heads"], x), strict=True):
        np.testing.assert_allclose(logits[0], vector["logits"][head], atol=1e-4)


def test_older_runtimes_can_read_the_file(tree) -> None:
    """ONNX Runtime 1.17 reads IR versions up to 9 and operator sets up to 20."""
    for path in made_bundle(tree)[1].rglob("*.onnx"):
        model = onnx.load(path)
        assert model.ir_version == 8
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        onnx.checker.check_model(model, full_check=True)
