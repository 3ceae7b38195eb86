"""Batches, fused photos and explanations of the two-stage inference, against single photos."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data.images import ImageError, Preprocessing
from petface.errors import UserError
from petface.inference.stages import Photo, Stage1Model, Stage2Model
from petface.inference.two_stage import TwoStageInference, refusal
from tests import reference_networks as reference
from tests.inference.made_stages import COLOURS, SPECIES, write_chinchilla, write_stage1

SIZES = {"best": 32, "chinchilla": 48}  # the two stages see photos of different sizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: list[np.ndarray]) -> Path:
    """A stage 1 that names several species among the pictures, and chinchilla's specialist."""
    folder = tmp_path_factory.mktemp("two_stage")
    weight, bias = reference.linear_heads(species=3)["species"]
    pixels = np.stack([Photo(p).at(Preprocessing(SIZES["best"])) for p in pictures])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    logits = reference.reference_logits(images, {"species": (weight, bias)})["species"]
    bias = bias - logits.mean(dim=0)  # no species is the answer to everything
    model = {**reference.resnet18_body(), "fc.weight": weight, "fc.bias": bias}
    write_stage1(folder / "best.pt", model, Preprocessing(SIZES["best"]))
    write_chinchilla(folder, Preprocessing(SIZES["chinchilla"], "letterbox"))
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Twelve pictures of different shapes, among which stage 1 names more than one species."""
    draw = np.random.default_rng(3)
    shapes = [(20 + 7 * n, 61 - 3 * n) for n in range(12)]
    plain = [draw.integers(0, 256, 3) for _ in shapes]
    return [
        np.clip(np.full((*shape, 3), colour) + draw.normal(0, 40, (*shape, 3)), 0, 255).astype(
            np.uint8
        )
        for shape, colour in zip(shapes, plain, strict=True)
    ]


@pytest.fixture
def engine(folder: Path) -> TwoStageInference:
    return TwoStageInference(folder / "best.pt", folder, "cpu")


def shares(answer: dict[str, Any]) -> list[float]:
    """All probabilities of an answer, in its order."""
    entries = [answer["species"], *answer["attributes"].values()]
    return [p for entry in entries for _, p in entry["topk"]]


def without_shares(answer: dict[str, Any]) -> Any:
    """An answer with its probabilities taken out."""

    def bare(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "topk": [label for label, _ in entry["topk"]]}

    attributes = {head: bare(entry) for head, entry in answer["attributes"].items()}
    return {**answer, "species": bare(answer["species"]), "attributes": attributes}


def test_a_batch_gives_each_photo_the_answer_it_gets_alone(
    engine: TwoStageInference, pictures: list[np.ndarray]
) -> None:
    alone = [engine.infer(picture) for picture in pictures]
    statuses = {answer["status"] for answer in alone}
    assert statuses == {"ok", "no_specialist"}, "the pictures must reach both"
    for num_loaded in (0, 1):  # specialists as they come, then all at once
        if num_loaded:
            assert list(engine.load_all()) == ["chinchilla"]
        together = engine.answer([engine.prepare(picture) for picture in pictures])
        for one, other in zip(alone, together, strict=True):
            assert without_shares(one) == without_shares(other)
            assert shares(one) == pytest.approx(shares(other), abs=1e-5)
    assert engine.answer([]) == []


def test_after_load_all_a_prepared_photo_holds_only_the_sizes_of_the_networks(
    engine: TwoStageInference, pictures: list[np.ndarray]
) -> None:
    assert engine.prepare(pictures[0]).source is not None
    engine.load_all()
    photo = engine.prepare(pictures[0])
    assert photo.source is None
    assert [photo.at(rule).shape for rule in engine.rules] == [(32, 32, 3), (48, 48, 3)]
    with pytest.raises(ImageError, match="more than 9 pixels"):
        engine.prepare(pictures[0], max_pixels=9)


def test_photos_of_one_animal_are_fused_by_their_mean_probability(
    engine: TwoStageInference, pictures: list[np.ndarray]
) -> None:
    stage1 = Stage1Model(engine.stage1.path, "cpu")
    rows = [dict(stage1.predict(picture, 3).topk) for picture in pictures]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in SPECIES}
    fused = engine.fuse([engine.prepare(picture) for picture in pictures], topk=3)
    assert fused["num_photos"] == len(pictures)
    assert dict(fused["species"]["topk"]) == pytest.approx(mean, abs=1e-5)
    assert fused["species"]["label"] == max(mean, key=mean.__getitem__)
    (only,) = [p for p in pictures if engine.infer(p)["species"]["label"] == "chinchilla"][:1]
    one = engine.fuse([engine.prepare(only)])
    assert without_shares({**one, "image": None}) == without_shares(
        {**engine.infer(only), "num_photos": 1}
    )


def test_attributes_are_fused_by_the_specialist_of_the_fused_species(
    engine: TwoStageInference, folder: Path, pictures: list[np.ndarray]
) -> None:
    model = reference.classifier(3, favourite=1)
    write_stage1(folder / "favourite.pt", model, Preprocessing(32))
    engine = TwoStageInference(folder / "favourite.pt", folder, "cpu")
    specialist = Stage2Model.load_for_species("chinchilla", folder, "cpu")
    rows = [dict(specialist.predict(picture, 4)["color1"].topk) for picture in pictures]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in COLOURS}
    broken = b"no photo"
    answer = engine.infer_animal([pictures[0], broken, *pictures[1:]], topk=4)
    assert dict(answer["animal"]["attributes"]["color1"]["topk"]) == pytest.approx(mean, abs=1e-5)
    assert answer["animal"]["num_photos"] == len(pictures)
    assert [photo["status"] for photo in answer["photos"]].index("unreadable") == 1
    assert without_shares(answer["photos"][2]) == without_shares(engine.infer(pictures[1], 4))
    nothing = engine.infer_animal([broken, b""])
    assert nothing["animal"] is None and len(nothing["photos"]) == 2
    assert nothing["photos"][0] == engine.infer(broken)


def test_a_photo_whose_logits_are_not_finite_gets_no_answer_and_harms_no_other(
    folder: Path, pictures: list[np.ndarray]
) -> None:
    engine = TwoStageInference(folder / "best.pt", folder, "cpu")
    usual, network = engine.answer([Photo(p) for p in pictures]), engine.stage1.network
    answer_pixels = network.answer_pixels

    def poisoned(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (logits,) = answer_pixels(pixels)
        logits[4] = torch.inf
        return (logits,)

    network.answer_pixels = poisoned  # type: ignore[method-assign]
    answers = engine.answer([Photo(p) for p in pictures])
    assert answers[4]["status"] == "non_finite" and "not finite" in answers[4]["message"]
    assert answers[4]["species"] is None and answers[4]["attributes"] == {}
    for place in range(len(pictures)):
        if place != 4:
            assert without_shares(answers[place]) == without_shares(usual[place])
    assert engine.fuse([Photo(p) for p in pictures])["num_photos"] == len(pictures) - 1


def test_an_explanation_is_the_answers_own_unless_another_label_is_named(
    engine: TwoStageInference, pictures: list[np.ndarray]
) -> None:
    assert engine.can_explain
    picture = next(p for p in pictures if engine.infer(p)["species"]["label"] == "chinchilla")
    own = engine.explain(picture)
    assert Image.open(io.BytesIO(own)).size == (32, 32)
    assert own == engine.explain(Photo(picture), label="chinchilla")
    assert own != engine.explain(picture, label="yak")
    colour = engine.explain(picture, head="color1")
    assert Image.open(io.BytesIO(colour)).size == (48, 48)
    label = engine.infer(picture)["attributes"]["color1"]["label"]
    assert colour == engine.explain(picture, species="chinchilla", head="color1", label=label)
    for names, message in (
        ({"head": "breed"}, "unknown head 'breed'; known: color1, gender"),
        ({"label": "unicorn"}, "unknown label of species 'unicorn'"),
        ({"head": "color1", "species": "yak"}, "no specialist for yak"),
        ({"head": "color1", "species": "../etc"}, "unknown species"),
    ):
        with pytest.raises(UserError, match=message):
            engine.explain(picture, **names)  # type: ignore[arg-type]


def test_the_engine_describes_its_models_without_their_folders(
    engine: TwoStageInference, folder: Path
) -> None:
    facts = engine.describe()
    assert facts["engine"] == "torch" and facts["precision"] == "fp32"
    assert facts["stage1"]["path"] == "best.pt"
    assert facts["specialists"]["chinchilla"]["heads"]["color1"] == COLOURS
    assert facts["no_specialist"] == ["cat", "yak"]
    assert str(folder) not in str(facts)


def test_a_checkpoint_alone_predicts_the_species(folder: Path) -> None:
    engine = TwoStageInference(folder / "best.pt")
    photos = [engine.prepare(np.full((9, 9, 3), shade, np.uint8)) for shade in (0, 99, 255)]
    answers = [*engine.answer(photos), engine.fuse(photos)]
    assert {answer["status"] for answer in answers} == {"ok"} and not engine.load_all()
    assert refusal(ImageError("gone", "too_large"))["status"] == "too_large"
