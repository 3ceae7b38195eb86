"""Sampling against torch's WeightedRandomSampler, hand-worked weights and exact counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from petface.data.loading import Samples
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.training.sampling import (
    ClassWeightedSampler,
    animal_groups,
    base_weights,
    class_weights,
    difficulty_weights,
    head_weights,
    samples_by_split,
    shuffled,
    tail_classes,
    tail_samples,
    write_class_history,
)

NAMES = ("cat", "chimp", "dog", "pig", "rabbit")


def tail(
    counts: list[int], mode: str, maximum: int = 0, quantile: float = 0.0, share: float = 0.0
) -> list[str]:
    options = {"head_exclusion_max": maximum, "tail_max": maximum}
    options |= {"tail_quantile": quantile, "tail_share": share}
    marked = tail_classes(counts, NAMES, mode, **options)  # type: ignore[arg-type]
    assert marked.dtype == bool and marked.shape == (5,)
    return [name for name, flag in zip(NAMES, marked, strict=True) if flag]


@pytest.mark.parametrize(
    ("mode", "value", "marked"),
    [
        ("head_exclusion", {"maximum": 20}, ["chimp", "rabbit"]),
        ("head_exclusion", {"maximum": 19}, ["chimp"]),
        ("head_exclusion", {"maximum": 10**6}, ["chimp", "rabbit"]),
        ("quantile", {"quantile": 0.0}, ["chimp"]),  # of 10 20 20 50, without the 0
        ("quantile", {"quantile": 0.5}, ["chimp", "dog", "rabbit"]),
        ("absolute", {"maximum": 19}, ["chimp"]),
        ("absolute", {"maximum": 50}, ["cat", "chimp", "dog", "rabbit"]),
        ("cumulative", {"share": 0.09}, []),
        ("cumulative", {"share": 0.10}, ["chimp"]),
        ("cumulative", {"share": 0.30}, ["chimp", "dog"]),
        ("cumulative", {"share": 1.0}, ["cat", "chimp", "dog", "rabbit"]),
        ("none", {"maximum": 10**6, "quantile": 1.0, "share": 1.0}, []),
    ],
)
def test_tail_modes_by_hand(mode: str, value: dict, marked: list[str]) -> None:
    assert tail([50, 10, 20, 0, 20], mode, **value) == marked  # cat chimp dog pig rabbit
    assert tail([0] * 5, mode, 100, 1.0, 1.0) == []


def test_a_share_is_not_lost_to_rounding() -> None:
    assert tail([71, 29, 0, 0, 0], "cumulative", share=0.29) == ["chimp"]  # 0.29 * 100 < 29


def test_a_split_is_cut_out_with_its_labels_or_refused_where_it_is_too_small() -> None:
    images, split = np.arange(10, 16), np.array([0, 0, 0, 1, 1, 2])
    arguments = images, {"species": images % 3}, images == 11, split
    train, val, test = samples_by_split(*arguments, needed=("train", "val"), what="x").values()
    assert train.images.tolist() == [10, 11, 12] and train.is_tail.tolist() == [False, True, False]
    assert val.labels["species"].tolist() == [1, 2] and test.images.tolist() == [15]
    with pytest.raises(UserError, match="x: the test split has 1 images"):
        samples_by_split(*arguments, needed=SPLITS, what="x")


def test_weights_of_four_classes_by_hand() -> None:
    # counts 1000 100 64 16: median 82; ratios 0.082 0.82 1.28125 5.125
    base = base_weights([1000, 100, 64, 16], alpha=0.5, cap=2.0)
    np.testing.assert_allclose(base, [1.0, 1.0, math.sqrt(1.28125), 2.0])  # sqrt(5.125) = 2.26
    # difficulties 0.1 0.3 0.5 0.9: median 0.4; factors 0.25 0.75 1.25 2.25
    updated = difficulty_weights(base, [0.9, 0.7, 0.5, 0.1], 99, perf_alpha=1.0, cap=3.0)
    np.testing.assert_allclose(updated, [1.0, 1.0, math.sqrt(1.28125) * 1.25, 3.0])
    # a power of 0.5 and a lower floor let the easy class sink
    sunk = difficulty_weights(base, [0.9, 0.7, 0.5, 0.1], 99, perf_alpha=0.5, floor=0.1, cap=9.0)
    np.testing.assert_allclose(sunk, [0.5, math.sqrt(0.75), math.sqrt(1.28125 * 1.25), 2.0 * 1.5])


def test_absent_classes_weigh_nothing_and_those_without_recall_what_they_weighed() -> None:
    base = base_weights([0, 8, 2, 0, 4], alpha=1.0, floor=0.1, cap=10.0)
    np.testing.assert_allclose(base, [0.0, 0.5, 2.0, 0.0, 1.0])
    kept = difficulty_weights(
        [2, 3, 4], [math.nan, 0.2, 0.6], 99, perf_alpha=1.0, floor=0.1, cap=99.0
    )
    np.testing.assert_allclose(kept, [2.0, 3.0 * 0.8 / 0.6, 4.0 * 0.4 / 0.6])
    nothing_known = difficulty_weights([2, 3, 4], [math.nan] * 3, 99, perf_alpha=1.0, cap=99.0)
    np.testing.assert_allclose(nothing_known, [2.0, 3.0, 4.0])
    recall = [math.nan, 0.5, 0.5, math.nan, 0.5]
    found = difficulty_weights(base, recall, 99, perf_alpha=1.0, cap=10.0)
    assert found[[0, 3]].tolist() == [0.0, 0.0]
    assert base_weights([0, 0], alpha=1.0, cap=2.0).tolist() == [0.0, 0.0]
    assert base_weights([], alpha=1.0, cap=2.0).shape == (0,)


def test_median_difficulty_of_zero_neither_explodes_nor_is_nan() -> None:
    base = np.array([2.0, 3.0, 4.0])
    with np.errstate(all="raise"):
        perfect = difficulty_weights(base, [1.0, 1.0, 1.0], 99, perf_alpha=2.0, cap=99.0)
        mostly = difficulty_weights(base, [1.0, 1.0, 0.97], 99, perf_alpha=1.0, cap=99.0)
        capped = difficulty_weights(base, [1.0, 1.0, 0.0], 99, perf_alpha=3.0, cap=5.0)
    np.testing.assert_allclose(perfect, base)
    np.testing.assert_allclose(mostly, [2.0, 3.0, 16.0])  # (0.03 + 0.01) / 0.01 = 4
    np.testing.assert_allclose(capped, [2.0, 3.0, 5.0])
    tiny = difficulty_weights(
        [2.0] * 3, [1.0, np.nextafter(1.0, 0), 0.0], 99, perf_alpha=50.0, cap=5.0
    )
    assert tiny.tolist() == [1.0, 2.0, 5.0]


def long_tailed_classes(num: int = 2000, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.choice(4, size=num, p=[0.6, 0.3, 0.08, 0.02]).astype(np.int16)


WEIGHTS = np.array([1.0, 1.5, 3.0, 8.0])


def test_expected_draws_equal_torchs_weighted_sampler() -> None:
    classes = long_tailed_classes(50)
    assert set(classes) == {0, 1, 2, 3}
    sampler = ClassWeightedSampler(classes, WEIGHTS, num_samples=20, seed=1)
    epochs = 3000
    mean = sum(np.bincount(sampler.draw(e), minlength=50) for e in range(epochs)) / epochs
    per_sample = torch.from_numpy(WEIGHTS[classes])
    generator = torch.Generator().manual_seed(0)
    theirs = torch.utils.data.WeightedRandomSampler(
        per_sample.tolist(), 20 * epochs, generator=generator
    )
    torch_mean = np.bincount(list(theirs), minlength=50) / epochs
    exact = (20 * per_sample / per_sample.sum()).numpy()
    tolerance = 5 * np.sqrt(exact / epochs)  # five standard errors of independent draws
    assert (np.abs(mean - exact) < tolerance).all()
    assert (np.abs(torch_mean - mean) < 2 * tolerance).all()


def test_class_counts_are_the_expected_ones_rounded_and_unbiased() -> None:
    classes = long_tailed_classes()
    sampler = ClassWeightedSampler(classes, WEIGHTS, num_samples=777, seed=2)
    mass = np.bincount(classes) * WEIGHTS
    expected = 777 * mass / mass.sum()
    counts = np.array([np.bincount(classes[sampler.draw(e)], minlength=4) for e in range(600)])
    assert (counts.sum(axis=1) == 777).all()
    assert (np.abs(counts - expected) < 1.0).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.1)  # 5 standard errors


def test_no_sample_comes_again_before_all_of_its_class_came() -> None:
    classes = long_tailed_classes()
    drawn = ClassWeightedSampler(classes, WEIGHTS, num_samples=5000, seed=3).draw(0)
    times = np.bincount(drawn, minlength=len(classes))
    for c in range(4):
        assert times[classes == c].max() - times[classes == c].min() <= 1
    assert times[classes == 3].min() > times[classes == 0].max()
    first, second = (np.bincount(half, minlength=4) for half in np.split(classes[drawn], 2))
    assert (np.abs(first - second) < 5 * np.sqrt(first + second)).all()  # shuffled across classes
    drawn = ClassWeightedSampler(classes, np.full(4, 0.3), seed=4).draw(7)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.sort(drawn), np.arange(len(classes)))


def test_draw_depends_on_seed_epoch_and_weights_alone() -> None:
    classes = long_tailed_classes()
    sampler = ClassWeightedSampler(classes, WEIGHTS, seed=6)
    straight = [sampler.draw(epoch) for epoch in range(3)]
    resumed = ClassWeightedSampler(classes, WEIGHTS, seed=6)
    np.testing.assert_array_equal(resumed.draw(2), straight[2])
    assert not np.array_equal(straight[0], straight[1])
    other_seed = ClassWeightedSampler(classes, WEIGHTS, seed=7).draw(0)
    assert not np.array_equal(other_seed, straight[0])


def test_weights_are_written_in_place_and_obeyed() -> None:
    classes = long_tailed_classes()
    given = WEIGHTS.copy()
    sampler = ClassWeightedSampler(classes, given, seed=8)
    held = sampler.weights
    sampler.set_weights([0.0, 0.0, 1.0, 0.0])
    assert sampler.weights is held and given.tolist() == WEIGHTS.tolist()
    assert (classes[sampler.draw(0)] == 2).all()
    held[:] = [0.0, 1.0, 0.0, 0.0]
    assert (classes[sampler.draw(0)] == 1).all()
    with pytest.raises(AssertionError):
        sampler.set_weights([1.0, 2.0])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, math.nan], [1.0, -1.0], [math.inf, 1.0]])
def test_impossible_weights_are_a_programmers_error(weights: list[float]) -> None:
    with pytest.raises(AssertionError):
        ClassWeightedSampler([0, 1], weights).draw(0)
    with pytest.raises(AssertionError):
        ClassWeightedSampler([0, -1], [1.0, 1.0])


def test_classes_without_samples_or_weight_are_passed_over() -> None:
    # awkward sums: the weightless and empty classes at the end must not catch a rounding rest
    sampler = ClassWeightedSampler(
        [1] * 3 + [2] * 7 + [4] * 5, [9.0, 0.1, 0.7, 5.0, 0.0, 2.0], 1000
    )
    for epoch in range(200):
        drawn = sampler.draw(epoch)
        assert len(drawn) == 1000 and drawn.max() < 10
    assert len(ClassWeightedSampler(np.zeros(0, np.int16), [1.0]).draw(0)) == 0
    assert ClassWeightedSampler([0], [1.0], num_samples=3).draw(0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("offset", [0.0, float(np.nextafter(1.0, 0.0))])
def test_the_outermost_offsets_neither_lose_nor_add_a_draw(offset: float) -> None:
    class Fixed:
        def random(self) -> float:
            return offset

    for weights in np.random.default_rng(0).random((200, 3)):
        sampler = ClassWeightedSampler([0, 0, 0, 1, 1, 2], weights, num_samples=1_012_934)
        assert sampler._draws_per_class(Fixed()).sum() == 1_012_934  # type: ignore[arg-type]


def test_shuffled_is_a_permutation_by_seed_and_epoch() -> None:
    order = shuffled(1000, seed=1, epoch=2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, shuffled(1000, seed=1, epoch=2))
    assert not np.array_equal(order, shuffled(1000, seed=1, epoch=3))
    assert not np.array_equal(order, shuffled(1000, seed=2, epoch=1))
    assert len(shuffled(0, 0, 0)) == 0


def test_tail_samples_are_those_of_the_small_training_classes():
    labels = np.array([2] * 6 + [1] * 3 + [0] * 2 + [-1] * 4 + [0] * 9)
    is_train = np.arange(len(labels)) < 15  # the nine later samples of class 0 do not count
    expected = [label == 0 for label in labels]  # counts 2, 3, 6; quantile 0.3 of them is 2.6
    assert tail_samples(labels, is_train, 0.3).tolist() == expected
    assert not tail_samples(np.full(5, -1), np.ones(5, bool), 0.5).any()


def test_a_heads_weights_show_classes_equally_and_unknown_ones_as_in_a_shuffle():
    labels = np.array([0] * 8 + [1] * 2 + [-1] * 10)
    samples = Samples(np.arange(20), {"breed": labels}, labels == 1)
    for alpha, wanted in ((1.0, [0.25, 0.25, 0.5]), (0.0, [0.4, 0.1, 0.5])):
        weights, places = head_weights(samples, "breed", alpha, (0.2, 8.0))
        share = weights * np.bincount(places)
        assert np.allclose(share / share.sum(), wanted) and (places == labels % 3).all()
    unknown = Samples(np.arange(20), {"breed": np.full(20, -1)}, labels == 1)
    for head, without in ((None, samples), ("breed", unknown)):
        weights, places = head_weights(without, head, 1.0, (0.2, 8.0))
        assert weights.tolist() == [1.0] and places.tolist() == [0] * 20


def test_class_weights_by_hand_and_their_clip():
    weights = class_weights([800, 0, 100, 50, 1], 1.0, (0.2, 8.0))
    assert weights.tolist() == [1.0, 0.0, 8.0, 8.0, 8.0]
    np.testing.assert_allclose(class_weights([70, 10], 0.7, (0.2, 8.0)), [1.0, 7**0.7])
    assert class_weights([], 0.7, (0.2, 8.0)).shape == (0,)


def test_easy_and_rarely_seen_classes_do_not_move_the_weights_of_the_reference():
    base, options = [1.0, 2.0, 3.0], {"perf_alpha": 1.0, "min_median": 0.05, "cap": 3.0}
    recall = [0.998, 0.9, 0.99]  # difficulties of 0.002, 0.1 and 0.01: their median counts as 0.05
    found = difficulty_weights(base, recall, [500, 500, 500], **options)
    np.testing.assert_allclose(found, [1.0, 3.0, 1.0])  # 0.04, 4.0 and 0.6, clipped to 1..3
    # 19 images say nothing about a class: it keeps its weight, whatever they showed
    for seen in (0.0, 1.0):
        few = difficulty_weights(
            [1, 2, 2], [0.5, 0.5, seen], [20, 20, 19], min_support=20, **options
        )
        np.testing.assert_allclose(few, [1.0, 2.0, 2.0])


def test_the_history_of_the_classes_is_a_row_per_epoch_and_class(tmp_path):
    history = [(1, [0.5, math.nan], [1.0, 3.0]), (2, [1.0, 0.25], [1.5, 2.0])]
    write_class_history(tmp_path / "classes.csv", ("cat", "pig"), history)
    assert (tmp_path / "classes.csv").read_text().splitlines() == [
        "epoch,species,recall,sampling_weight",
        "1,cat,0.5000,1.0000",
        "1,pig,,3.0000",
        "2,cat,1.0000,1.5000",
        "2,pig,0.2500,2.0000",
    ]


def test_an_epoch_shows_each_animal_with_several_photos_at_once():
    animals = np.repeat(np.arange(50), np.random.default_rng(0).integers(2, 7, 50))
    order = animal_groups(animals, 4, 40, seed=1, epoch=0)
    assert len(order) % 40 == 0
    groups = animals[order].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    first = groups[:50, 0]  # every animal once before any comes again
    assert sorted(first) == list(range(50))
    counts = np.bincount(animals)
    for row in order.reshape(-1, 4)[:50]:
        assert len(set(row.tolist())) == min(4, counts[animals[row[0]]])
    assert np.array_equal(order, animal_groups(animals, 4, 40, seed=1, epoch=0))
    assert not np.array_equal(order, animal_groups(animals, 4, 40, seed=1, epoch=1))


def test_an_epoch_of_animals_shows_nearly_every_photo_and_never_nothing():
    animals = np.repeat(np.arange(200), 3)
    assert len(np.unique(animal_groups(animals, 3, 30, 0, 0))) == 600
    assert len(animal_groups(np.array([0, 0, 1, 1]), 4, 128, 0, 0)) == 8
