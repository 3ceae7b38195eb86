"""What computes: settings that do not go together, OpenVINO against torch, what is kept of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from petface.data.images import Preprocessing
from petface.errors import SettingsError, UserError
from petface.files import sha256_of_file
from petface.inference import loading as engines
from petface.inference.loading import (
    Arithmetic,
    agreement,
    largest_error,
    load_stage,
    temperatures_of,
)
from petface.models import checkpoints, openvino_network
from petface.models.architecture import Architecture
from petface.models.multi_head import _MultiHeadModel
from petface.models.network import ExactWhereClose, Network
from tests import reference_networks as reference

RULE = Preprocessing(32, "stretch", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
HEADS = reference.linear_heads(color1=4, gender=2)


def pixels(num: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 32, 32, 3), generator=draw, dtype=torch.uint8)


@pytest.fixture(scope="module")
def specialist(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chinchilla_best.pt"
    checkpoints.save(
        path,
        {
            "model": reference.stored(HEADS),
            "species": "chinchilla",
            "head_vocabs": {"color1": list("abcd"), "gender": ["female", "male"]},
            "preprocessing": RULE.to_dict(),
            "calibration": {"gender": {"temperature": 2.0}},
        },
    )
    return path


def stage(specialist: Path, folder: Path, how: Arithmetic, photos=lambda _, n: pixels(min(n, 64))):
    return load_stage(
        specialist, "chinchilla", how, checksum=sha256_of_file(specialist),
        identity={"dataset": "d"}, folder=folder,
        photos_for=lambda _: photos,
    )  # fmt: skip


def by_hand(batch: torch.Tensor) -> list[torch.Tensor]:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RULE.mean, RULE.std))
    x = (batch.permute(0, 3, 1, 2) / 255 - mean) / std
    return list(reference.reference_logits(x, HEADS).values())


def never(*_):
    raise AssertionError("this should have been kept")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", "int8"), 'int8 needs ENGINE = "openvino"'),
        (("cpu", "fp16", "openvino"), "has no PRECISION fp16"),
        (("cpu", "bf16", "openvino", True), "COMPILE is torch's"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Arithmetic.choose(*arguments)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"needs openvino .*requirements-openvino\.txt"):
        Arithmetic.choose("cpu", "fp32", "openvino")


def test_whatever_moves_an_answer_is_part_of_the_identity() -> None:
    plain = Arithmetic("cpu", "fp32", "torch", False, 0.0, 0.99)
    assert plain.identity()["packages"] == {"torch": torch.__version__}
    others = [
        Arithmetic("cpu", "bf16", "torch", False, 0.0, 0.99),
        Arithmetic("cpu", "fp32", "torch", True, 0.0, 0.99),
        Arithmetic("cpu", "fp32", "torch", False, 0.1, 0.99),
        Arithmetic("cuda", "fp32", "torch", False, 0.0, 0.99),
    ]
    found = [json.dumps(how.identity()) for how in (plain, *others)]
    assert len(set(found)) == 5


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_torch_answers_as_by_hand(specialist: Path, tmp_path: Path, margin: float) -> None:
    how = Arithmetic.choose("cpu", "fp32", exact_margin=margin)
    found = stage(specialist, tmp_path, how)
    assert isinstance(found.network, Network), "fp32 needs nothing exact beside it"
    assert list(found.names) == ["color1", "gender"] and found.network.temperatures == (1.0, 2.0)
    for one, other in zip(found.network.answer_pixels(pixels(9)), by_hand(pixels(9)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    careful = stage(specialist, tmp_path, Arithmetic.choose("cpu", "bf16", exact_margin=99.0))
    assert isinstance(careful.network, ExactWhereClose)
    again = careful.network.answer_pixels(pixels(9))
    for one, other in zip(again, by_hand(pixels(9)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert careful.network.num_asked_again == 9 and not list(tmp_path.iterdir())


def test_agreement_counts_equal_answers_per_head(specialist: Path, tmp_path: Path) -> None:
    exact = stage(specialist, tmp_path, Arithmetic.choose("cpu", "fp32")).network
    content = checkpoints.read_stage2(specialist, "chinchilla")
    batch = pixels(70)
    gender = exact.answer_pixels(batch)[1]  # moved until half of the answers are others
    content.model.heads["gender"].bias.data[0] += (gender[:, 1] - gender[:, 0]).median()
    other = Network.for_inference(
        content.model, RULE, "cpu", "fp32", temperatures_of(content, ["color1", "gender"])
    )
    one, two = exact.answer_pixels(batch), other.answer_pixels(batch)
    wanted = [(a.argmax(1) == b.argmax(1)).sum().item() / 70 for a, b in zip(one, two, strict=True)]
    assert agreement(other, exact, batch) == pytest.approx(wanted)
    assert wanted[0] == 1.0 > wanted[1], "the moved head answers differently somewhere"


class Fixed:
    preprocessing, temperatures = RULE, ()

    def __init__(self, *heads: list[list[float]]) -> None:
        self.heads = heads

    def answer_pixels(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.tensor(head)[: len(batch)] for head in self.heads)


def test_the_largest_error_is_that_of_the_gap_between_the_two_best() -> None:
    fast = Fixed([[5.0, 4.0, 0.0], [1.0, 2.0, 9.0]], [[3.0], [4.0]])
    exact = Fixed([[5.5, 4.25, 7.0], [1.0, 1.0, 8.0]], [[0.0], [0.0]])
    # gaps of the best two: 1 against 1.25, and 7 against 7; a single class has no gap
    assert largest_error(fast, exact, pixels(2)) == pytest.approx(0.25)
    assert largest_error(fast, exact, pixels(0)) == math.inf


def test_a_measured_margin_decides_what_bf16_might_answer_otherwise(
    specialist: Path, tmp_path: Path
) -> None:
    asked = []

    def photos(part: str, num: int) -> torch.Tensor:
        asked.append((part, num))
        return pixels(0 if part == "val" else 20, 5)

    found = stage(specialist, tmp_path, Arithmetic.choose("cpu", "bf16", exact_margin=-1), photos)
    assert asked == [("val", 64), ("train", 64)], "training photos where there is no other"
    assert isinstance(found.network, ExactWhereClose)
    fast = found.network.fast.answer_pixels(pixels(20, 5))
    gaps = []
    for one, other in zip(fast, by_hand(pixels(20, 5)), strict=True):
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            first, second = sorted(range(len(a)), key=lambda k: -a[k])[:2]  # noqa: B023
            gaps.append(abs((a[first] - a[second]) - (b[first] - b[second])))
    assert found.network.margin == pytest.approx(1.5 * max(gaps), rel=0.02) and max(gaps) > 0


class TestOpenVino:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason=openvino_network.INSTALL_LINE)
        pytest.importorskip("nncf", reason=openvino_network.INSTALL_LINE)

    def test_it_answers_as_torch_and_converts_once(
        self, specialist: Path, tmp_path: Path, monkeypatch
    ) -> None:
        how = Arithmetic.choose("cpu", "fp32", "openvino")
        first = stage(specialist, tmp_path, how)
        assert first.network.temperatures == (1.0, 2.0)
        convert = openvino_network._convert
        monkeypatch.setattr(openvino_network, "_convert", never)
        again = stage(specialist, tmp_path, how)
        (kept,) = tmp_path.iterdir()
        assert sorted(p.name for p in kept.iterdir()) == ["card.json", "model.bin", "model.xml"]
        for num in (1, 7, 33):
            for network in (first.network, again.network):
                answers = network.answer_pixels(pixels(num, num))
                for one, other in zip(answers, by_hand(pixels(num, num)), strict=True):
                    assert one.dtype == torch.float32
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        damaged = bytearray((kept / "model.bin").read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (kept / "model.bin").write_bytes(damaged)
        with pytest.raises(AssertionError, match="should have been kept"):
            stage(specialist, tmp_path, how)
        monkeypatch.setattr(openvino_network, "_convert", convert)
        mended = stage(specialist, tmp_path, how).network.answer_pixels(pixels(7))
        torch.testing.assert_close(mended[0], by_hand(pixels(7))[0], rtol=1e-4, atol=1e-4)
        assert sorted(p.name for p in tmp_path.iterdir()) == [kept.name], (
            "nothing half made is left"
        )

    @pytest.mark.parametrize(
        "architecture",
        [
            Architecture("mobilenet_v3_small", attention="se", hidden=9, dropout=0.3, bodies=2),
            Architecture("efficientnet_b0", hidden=5),
            Architecture("resnet34", attention="se"),
        ],
        ids=str,
    )
    def test_every_architecture_answers_as_torch(self, architecture, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = _MultiHeadModel({"color1": 4, "gender": 2}, architecture)
        path = tmp_path / "chinchilla_best.pt"
        checkpoints.save(
            path,
            {
                "model": model.state_dict(),
                "species": "chinchilla",
                "head_vocabs": {"color1": list("abcd"), "gender": ["female", "male"]},
                "preprocessing": RULE.to_dict(),
                **architecture.stored(),
            },
        )
        network = stage(path, tmp_path, Arithmetic.choose("cpu", "fp32", "openvino")).network
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (RULE.mean, RULE.std))
        x = (pixels(6).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.inference_mode():
            expected = model.eval()(x)
        for one, other in zip(network.answer_pixels(pixels(6)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

    def test_int8_is_measured_kept_and_refused_where_it_differs(
        self, specialist: Path, tmp_path: Path, monkeypatch, capsys
    ) -> None:
        asked = []

        def photos(part: str, _: int) -> torch.Tensor:
            asked.append(part)
            return pixels(48, len(part))

        def choose(least: float, margin: float = 0.0) -> Arithmetic:
            return Arithmetic.choose(
                "cpu", "int8", "openvino", exact_margin=margin, int8_agreement=least
            )

        network = stage(specialist, tmp_path, choose(0.0), photos).network
        assert asked == ["train", "val"], "the test part is never looked at"
        found = network.answer_pixels(pixels(48, len("val")))
        equal = [
            float((one.argmax(1) == other.argmax(1)).double().mean())
            for one, other in zip(found, by_hand(pixels(48, len("val"))), strict=True)
        ]
        (card,) = [json.loads((p / "card.json").read_text()) for p in tmp_path.iterdir()]
        assert list(card["agreement"]["equal"].values()) == pytest.approx(equal, abs=0.05)
        assert (
            card["agreement"]["num"] == 48 and "on 48 validation photos" in capsys.readouterr().out
        )
        asked.clear()
        monkeypatch.setattr(engines, "agreement", lambda *_: [0.98, 1.0])
        assert stage(specialist, tmp_path, choose(0.0), photos) and asked == []
        with pytest.raises(UserError, match="fewer than 99.00% of fp32's answers"):
            stage(specialist, tmp_path, choose(0.99, margin=0.01), photos)
        assert asked == ["val"], "scales are kept, the comparison is for that margin"

    def test_int8_without_validation_photos_is_refused(self, specialist: Path, tmp_path) -> None:
        photos = lambda part, _: pixels(16 if part == "train" else 0)  # noqa: E731
        how = Arithmetic.choose("cpu", "int8", "openvino")
        with pytest.raises(UserError, match="no validation photo to compare"):
            stage(specialist, tmp_path, how, photos)

    def test_it_reports_to_nobody(self) -> None:
        openvino_network.versions("int8")
        assert sys.modules["openvino_telemetry"] is None
