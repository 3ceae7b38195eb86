"""Answers against Pillow and torchvision by hand; what is said where there is no answer."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference_engine
from inference_engine import Stage2Model, TwoStageInference
from petface.data.images import Preprocessing
from petface.errors import UserError
from petface.inference.stages import lay_out
from petface.inference.two_stage import readable
from petface.models import checkpoints, layouts
from tests import reference_networks as reference
from tests.inference.made_stages import COLOURS, HEADS, SPECIES, write_chinchilla, write_stage1

MEAN, STD, SIZE_PX = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 that answers chinchilla to everything, and chinchilla's specialist."""
    folder = tmp_path_factory.mktemp("models")
    rule = Preprocessing(SIZE_PX, "stretch", MEAN, STD)
    write_stage1(folder / "best.pt", reference.classifier(3, favourite=1), rule)
    write_chinchilla(folder, rule)
    return folder


@pytest.fixture
def engine(folder: Path) -> TwoStageInference:
    return TwoStageInference(folder / "best.pt", folder, "cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo(picture: Image.Image, tmp_path: Path) -> Path:
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def by_hand(picture: Image.Image, heads: reference.Heads) -> dict[str, list[float]]:
    """Probabilities per head."""
    resized = picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
    values = torch.tensor(np.asarray(resized)).permute(2, 0, 1) / 255
    normal = (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    logits = reference.reference_logits(normal[None], heads)
    return {head: row[0].softmax(0).tolist() for head, row in logits.items()}


def ranked(names: tuple[str, ...], probabilities: list[float]) -> list[tuple[str, Any]]:
    pairs = sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])
    return [(name, pytest.approx(p, abs=1e-5)) for name, p in pairs]


def encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_image_gets_the_answer_computed_by_hand(
    engine: TwoStageInference, picture: Image.Image, photo: Path
) -> None:
    state = reference.classifier(3, favourite=1)
    (species,) = by_hand(picture, {"fc": (state["fc.weight"], state["fc.bias"])}).values()
    heads = by_hand(picture, HEADS)
    specialist = engine.specialist("chinchilla")
    assert specialist is not None
    for source in (photo, str(photo), encoded(picture), picture, np.asarray(picture)):
        answer = engine.stage1.predict(source)
        assert answer.label == "chinchilla"
        assert answer.topk == ranked(SPECIES, species)
        answers = specialist.predict(source, topk_per_head=4)
        assert list(answers) == ["color1", "gender"]
        for head, names in (("color1", COLOURS), ("gender", ("female", "male"))):
            assert answers[head].topk == ranked(names, heads[head])
            assert answers[head].label == answers[head].topk[0][0]
            assert answers[head].vocabulary == "checkpoint"


def test_a_list_of_images_gives_a_list(engine: TwoStageInference, picture, photo: Path) -> None:
    specialist = engine.specialist("chinchilla")
    for model in (engine.stage1, specialist):
        dark = np.zeros((9, 9, 3), np.uint8)
        found, wanted = model.predict([picture, dark]), [model.predict(photo), model.predict(dark)]
        for own, alone in zip(found, wanted, strict=True):
            pairs = zip(*(flat(one) for one in (own, alone)), strict=True)
            assert all(a == pytest.approx(b, abs=1e-4) for a, b in pairs)
        assert flat(found[0]) != flat(found[1])
        assert model.predict([photo]) == wanted[:1] and model.predict([]) == []


def flat(prediction: Any) -> list[Any]:
    """Labels and probabilities in the order of the classes."""
    heads = prediction.values() if isinstance(prediction, dict) else [prediction]
    return [value for head in heads for value in sum(sorted(head.topk), ())]


def test_topk_is_cut_to_the_classes_and_refused_below_1(
    engine: TwoStageInference, photo: Path
) -> None:
    for topk in (1, 3, 10**9):
        assert len(engine.stage1.predict(photo, topk=topk).topk) == min(topk, 3)
    specialist = engine.specialist("chinchilla")
    assert specialist is not None
    assert [len(p.topk) for p in specialist.predict(photo, 3).values()] == [3, 2]
    for predict in (engine.stage1.predict, specialist.predict, engine.infer):
        with pytest.raises(ValueError, match="topk must be 1 or more, not 0"):
            predict(photo, 0)


def test_infer_is_ready_for_json(engine: TwoStageInference, photo: Path) -> None:
    answer = engine.infer(photo, topk=2)
    species = engine.stage1.predict(photo, 2)
    assert answer.keys() == {"image", "status", "species", "attributes"}
    assert (answer["image"], answer["status"]) == (str(photo), "ok")
    assert answer["species"] == {
        "label": "chinchilla", "topk": species.topk, "sure": None, "answer": "chinchilla",
    }  # fmt: skip
    assert list(answer["attributes"]) == ["color1", "gender"]
    gender = answer["attributes"]["gender"]
    assert gender.keys() == {"label", "topk", "vocabulary", "sure", "answer"}
    assert gender["sure"] is None and gender["answer"] == gender["label"]
    again = json.loads(json.dumps(answer, allow_nan=False))
    assert again["attributes"]["color1"]["topk"] == [
        list(pair) for pair in answer["attributes"]["color1"]["topk"]
    ]
    assert engine.infer(photo.read_bytes(), topk=2) == {**answer, "image": None}
    text = readable(answer)
    assert text.startswith(f"{photo}\n  species  chinchilla ") and "gender" in text


def calibrated(
    folder: Path, out: Path, species: dict[str, Any] | None = None, **heads: dict[str, Any]
) -> TwoStageInference:
    """The models of `folder` with a calibration put into their checkpoints."""
    for name, table in (
        ("best.pt", {"species": species} if species else {}),
        ("chinchilla/chinchilla_best.pt", heads),
    ):
        content = checkpoints.load(folder / name)
        checkpoints.save(out / name, {**content, "calibration": table})
    return TwoStageInference(out / "best.pt", out, "cpu")


def test_the_temperature_is_obeyed_and_changes_no_answer(
    engine: TwoStageInference, folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    """Calibration names heads in its own order, and not all of them."""
    cool = calibrated(folder, tmp_path, {"temperature": 4.0}, gender={"temperature": 2.0})
    plain, specialist = engine.specialist("chinchilla"), cool.specialist("chinchilla")
    assert plain is not None and specialist is not None
    halved = {**HEADS, "gender": tuple(tensor / 2 for tensor in HEADS["gender"])}
    expected = by_hand(picture, halved)  # half the weights and bias give half the logits
    found, before = specialist.predict(picture, 9), plain.predict(picture, 9)
    assert found["color1"].topk == ranked(COLOURS, expected["color1"])
    assert found["gender"].topk == ranked(("female", "male"), expected["gender"])
    assert found["gender"].topk[0][1] < before["gender"].topk[0][1]
    assert {h: p.label for h, p in found.items()} == {h: p.label for h, p in before.items()}
    state = reference.classifier(3, favourite=1)
    quarter = {"fc": (state["fc.weight"] / 4, state["fc.bias"] / 4)}
    assert cool.stage1.predict(picture, 9).topk == ranked(SPECIES, by_hand(picture, quarter)["fc"])


@pytest.mark.parametrize(
    ("gap", "sure"), [(-0.01, True), (0.0, True), (0.01, False), (None, False)]
)
def test_answers_below_the_threshold_are_unsure(
    engine: TwoStageInference, folder: Path, photo: Path, tmp_path: Path, gap: Any, sure: bool
) -> None:
    """`gap` lies between the confidence and the threshold; None: no threshold was found."""
    before = engine.infer(photo)
    p = before["attributes"]["color1"]["topk"][0][1]
    fitted = {"temperature": 1.0, "threshold": None if gap is None else p + gap}
    asked = calibrated(folder, tmp_path, {"temperature": 1.0, "threshold": 0.0}, color1=fitted)
    answer = asked.infer(photo)
    colour, gender = answer["attributes"]["color1"], answer["attributes"]["gender"]
    label = before["attributes"]["color1"]["label"]
    assert (colour["sure"], colour["label"]) == (sure, label)
    assert colour["answer"] == (label if sure else "unsure")
    assert gender["sure"] is None  # it was not calibrated
    assert answer["species"]["sure"] is True
    json.dumps(answer, allow_nan=False)
    lines = readable(answer).splitlines()
    assert [line for line in lines if "(unsure)" in line] == ([] if sure else [lines[2]])
    assert sure or f" % (unsure)   ({answer['attributes']['color1']['topk'][1][0]} " in lines[2]


def test_a_breed_says_what_else_it_may_be(picture: Image.Image, tmp_path: Path) -> None:
    heads, names = reference.linear_heads(breed=5, gender=2), tuple("abcde")
    p = by_hand(picture, heads)["breed"]
    order = [name for name, _ in ranked(names, p)]
    third = sorted(p)[-3]
    for q, expected in [(1 - third + 1e-4, order[:3]), (0.0, order[:1]), (None, None)]:
        fitted = {"temperature": 1.0, "threshold": 0.5, "conformal_quantile": q}
        checkpoints.save(
            tmp_path / "cat_best.pt",
            {
                "model": reference.stored(heads),
                "head_vocabs": {"breed": list(names), "gender": ["female", "male"]},
                "preprocessing": Preprocessing(SIZE_PX, "stretch", MEAN, STD).to_dict(),
                "calibration": {"breed": fitted, "gender": fitted},
            },
        )
        found = Stage2Model.load_for_species("cat", tmp_path, "cpu").predict(picture)
        assert found["breed"].may_be == expected
        assert found["gender"].may_be is None
        entry = lay_out(found["breed"])
        assert entry.get("may_be") == expected and ("may_be" in entry) == (q is not None)


def test_no_specialist(engine: TwoStageInference, photo: Path) -> None:
    engine.stage1.network.model.fc.bias.data[2] += 99
    answer = engine.infer(photo)
    assert answer["status"] == "no_specialist" and "message" not in answer
    assert answer["species"]["label"] == "yak" and answer["attributes"] == {}
    assert "no specialist" in readable(answer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("stage", [1, 2])
def test_answers_that_are_not_finite_name_no_class(
    engine: TwoStageInference, photo: Path, stage: int, value: float
) -> None:
    specialist = engine.specialist("chinchilla")
    assert specialist is not None
    bad = engine.stage1 if stage == 1 else specialist
    last = bad.network.model.fc if stage == 1 else bad.network.model.heads["gender"]
    last.bias.data[0] = value
    answer = engine.infer(photo)
    assert answer["status"] == "non_finite" and "not finite" in answer["message"]
    assert answer["attributes"] == {}
    assert (answer["species"] is None) == (stage == 1)
    json.dumps(answer, allow_nan=False)
    with pytest.raises(UserError, match="not finite"):
        bad.predict(photo)


def test_images_that_cannot_be_used(engine: TwoStageInference, photo: Path) -> None:
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    for source in (photo, photo.with_name("missing.png"), b"", np.zeros((3, 3, 9), np.uint8)):
        answer = engine.infer(source)
        assert answer["status"] == "unreadable" and answer["message"]
        assert answer["species"] is None and answer["attributes"] == {}
    assert engine.infer(Image.new("1", (20_000, 20_000)))["status"] == "too_large"


def test_a_specialist_is_read_once(
    engine: TwoStageInference, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.infer(photo)
    monkeypatch.setattr(layouts, "read_stage2", None)
    assert engine.infer(photo) == first


def test_command_line(script: Callable[..., Any], folder: Path, photo: Path) -> None:
    models = ["--stage1-checkpoint", folder / "best.pt", "--stage2-folder", folder]
    done = script("inference_engine.py", [photo, *models, "--device", "cpu"])
    assert (done.code, done.err) == (0, "")
    first, *lines = done.out.splitlines()
    assert first == str(photo)
    assert [line.split()[0] for line in lines] == ["species", "color1", "gender"]
    assert lines[0].split()[1] == "chinchilla" and lines[0].split()[3] == "%"

    odd = os.fsdecode(os.fsencode(photo.parent) + b"/caf\xe9.png")
    Path(odd).write_bytes(photo.read_bytes())
    missing = photo.with_name("missing.png")
    done = script("inference_engine.py", [photo, odd, missing, *models, "--json", "--topk", 1])
    assert (done.code, done.err) == (1, "")
    good, also_good, bad = map(json.loads, done.out.splitlines())
    assert (good["status"], good["species"]["label"]) == ("ok", "chinchilla")
    assert len(good["attributes"]["color1"]["topk"]) == 1
    assert also_good == {**good, "image": odd}
    assert bad["status"] == "unreadable" and "missing.png" in bad["message"]


def test_command_line_without_a_model_or_a_photo(script: Callable[..., Any], photo: Path) -> None:
    wrong = photo.with_name("wrong.pt")
    done = script("inference_engine.py", [photo, "--stage1-checkpoint", wrong])
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {wrong}: no such file; train first, or check the path\n"
    done = script("inference_engine.py", [])
    assert done.code == 2 and done.err.startswith("error: give a photo")
    done = script("inference_engine.py", [photo, "--topk", 0])
    assert done.code == 2 and "--topk must be" in done.err


def test_constructors_without_arguments_take_the_constants(monkeypatch, tmp_path):
    monkeypatch.setattr(inference_engine, "STAGE1_CHECKPOINT", str(tmp_path / "one.pt"))
    monkeypatch.setattr(inference_engine, "STAGE2_FOLDER", str(tmp_path / "two"))
    for make, name in (
        (inference_engine.Stage1Model, "one.pt"),
        (inference_engine.TwoStageInference, "one.pt"),
        (lambda: inference_engine.Stage2Model.load_for_species("cat"), "two"),
    ):
        with pytest.raises(UserError, match=name):
            make()


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "runs/stage2"), (["--stage1-checkpoint", "a.pt"], None), (["--stage2-folder", "b"], "b")],
)
def test_another_systems_specialists_are_not_asked(monkeypatch, tmp_path, words, expected):
    (tmp_path / "runs/stage2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    given = {}
    monkeypatch.setattr(inference_engine, "evaluate_full_dataset", lambda *_, **how: given | how)
    monkeypatch.setattr(inference_engine, "describe_summary", given.update)
    inference_engine.evaluate(words)
    assert given["stage2_folder"] == expected
