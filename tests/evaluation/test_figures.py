"""The figures of an evaluation's details against loops over photos and scikit-learn."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support, recall_score

from petface import metrics
from petface.evaluation.details import HEADS, read_evaluation, read_heads
from petface.evaluation.figures import interval, percent, points, write_confusions
from tests.evaluation.made_evaluation import CLASSES, SPECIES, Photo, fitted

PARTS = ("train", "val", "test", "all")


def true_of(photo, head):
    return photo["species"] if head == "species" else photo[f"{head}_true"]


def names_of(photo, head):
    return SPECIES if head == "species" else CLASSES[photo["species"]][head]


def asked(photos, part, head, species=None):
    """The photos with a label and an answer."""
    return [
        photo
        for photo in photos
        if part in ("all", photo["split"])
        and species in (None, photo["species"])
        and photo[f"{head}_correct"] != ""
    ]


def rank(photo, head):
    """Place of the truth among the answers; behind all where it is none of them."""
    p, names = photo["raw"][head], names_of(photo, head)
    order = sorted(range(len(p)), key=lambda k: (-round(p[k], 12), k))
    answers = [names[k] for k in order]
    true = true_of(photo, head)
    return answers.index(true) + 1 if true in answers else len(names) + 1


def naive_ece(sure, right, num_bins=15):
    """Bins of equal mass; equal confidences share the bin of the first of them."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for confidence, is_right in zip(sure, right, strict=True):
        place = sum(other < confidence for other in sure)
        bins[place * num_bins // len(sure)].append((confidence, is_right))
    gap = 0.0
    for held in bins.values():
        gap += abs(sum(c for c, _ in held) - sum(r for _, r in held))
    return gap / len(sure)


def combinations(photos):
    return [
        (part, head, species)
        for part in PARTS
        for head in HEADS
        for species in (None, *CLASSES)
        if asked(photos, part, head, species)
    ]


def figure_of(summary, part, head, species):
    place = summary["figures"][part]
    return (place if species is None else summary["per_species"][part][species])[head]


def test_every_part_head_and_species_has_its_figures(summary, photos):
    found = combinations(photos)
    assert len(found) > 60
    for part in PARTS:
        heads = {head for p, head, s in found if p == part and s is None}
        assert heads == set(summary["figures"][part]) == set(HEADS)


def test_ranks_and_losses(summary, photos):
    for part, head, species in combinations(photos):
        own = asked(photos, part, head, species)
        found = figure_of(summary, part, head, species)
        right = [photo[f"{head}_correct"] == "1" for photo in own]
        assert found["num"] == len(own) and found["correct"] == sum(right)
        for k in (3, 5):
            counted = [photo for photo in own if len(names_of(photo, head)) > k]
            hits = [rank(photo, head) <= k for photo in counted]
            assert found[f"num_top{k}"] == len(counted)
            assert found[f"top{k}"] == (pytest.approx(np.mean(hits)) if hits else None)
        wrong = [
            photo for photo in own
            if photo[f"{head}_correct"] == "0" and len(names_of(photo, head)) > 5
        ]  # fmt: skip
        saved = [rank(photo, head) <= 5 for photo in wrong]
        assert found["rescued_by_top5"] == (pytest.approx(np.mean(saved)) if saved else None)
        none = [true_of(photo, head) not in names_of(photo, head) for photo in own]
        assert found["num_not_a_class"] == sum(none)
        for prefix in ("", "raw_"):
            nll, brier, sure = [], [], []
            for photo in own:
                p, true = photo[prefix.strip("_") or "p"][head], true_of(photo, head)
                sure.append(float(np.float32(max(p))))
                if true in names_of(photo, head):
                    k = names_of(photo, head).index(true)
                    nll.append(-math.log(p[k]))
                    brier.append(sum((v - (c == k)) ** 2 for c, v in enumerate(p)))
            for name, values in (("nll", nll), ("brier", brier)):
                expected = pytest.approx(np.mean(values), rel=1e-5) if values else None
                assert found[prefix + name] == expected, (part, head, species)
            assert found[f"{prefix}ece"] == pytest.approx(naive_ece(sure, right), abs=1e-6)
    assert summary["figures"]["test"]["gender"]["num_not_a_class"] > 5
    assert summary["per_species"]["test"]["cat"]["gender"]["top3"] is None


def test_class_figures_equal_scikit_learn(summary, photos):
    for part, head, species in combinations(photos):
        own = asked(photos, part, head, species)
        found = figure_of(summary, part, head, species)
        if head == "species" and species is not None:
            continue
        group = lambda photo: "" if head == "species" else photo["species"]  # noqa: B023, E731
        true = [f"{group(photo)}/{true_of(photo, head)}" for photo in own]
        given = [f"{group(photo)}/{photo[f'{head}_pred']}" for photo in own]
        scores = precision_recall_fscore_support(true, given, average="macro", zero_division=0)
        names = ("macro_precision", "macro_recall", "macro_f1")
        assert [found[n] for n in names] == pytest.approx(scores[:3])
        balanced = recall_score(
            true, given, labels=sorted(set(true)), average="macro", zero_division=0
        )
        assert found["balanced_accuracy"] == pytest.approx(balanced)
        groups = sorted({group(photo) for photo in own})
        if len(groups) == 1:
            kappa = cohen_kappa_score(true, given)
            assert found["kappa"] == (None if math.isnan(kappa) else pytest.approx(kappa))
        else:  # chance that knows the species, by hand
            by_chance = 0.0
            for name in groups:
                t = Counter(t for t, p in zip(true, own, strict=True) if group(p) == name)
                g = Counter(t for t, p in zip(given, own, strict=True) if group(p) == name)
                by_chance += sum(t[k] * g[k] for k in t) / t.total() / len(own)
            assert found["kappa"] == pytest.approx(
                (found["accuracy"] - by_chance) / (1 - by_chance)
            )


def test_one_species_of_stage_1_is_one_class(summary, photos):
    own = asked(photos, "test", "species")
    true, given = [p["species"] for p in own], [p["species_pred"] for p in own]
    scores = precision_recall_fscore_support(true, given, labels=list(CLASSES), zero_division=0)
    for species, precision, recall, f1, num in zip(CLASSES, *scores, strict=True):
        found = summary["per_species"]["test"][species]["species"]
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(
            (precision, recall, f1)
        )
        assert found["num"] == num and found["kappa"] is found["macro_f1"] is None
    trained = Counter(p["species"] for p in photos if p["split"] == "train")
    by_majority = true.count(max(sorted(trained), key=trained.__getitem__)) / len(true)
    assert summary["test"]["species"]["majority_baseline"] == pytest.approx(by_majority)


def test_points_lost_in_each_stage(summary, photos):
    for part, head, species in combinations(photos):
        if head == "species":
            continue
        own = [
            photo
            for photo in photos
            if part in ("all", photo["split"]) and species in (None, photo["species"])
            and head in CLASSES[photo["species"]] and photo[f"{head}_true"]
            and photo["species_correct"]
        ]  # fmt: skip
        first = sum(photo["species_pred"] != photo["species"] for photo in own)
        right = sum(photo[f"{head}_pred"] == photo[f"{head}_true"] for photo in own)
        found = figure_of(summary, part, head, species)
        assert found["end_to_end"]["num"] == len(own) and found["end_to_end"]["correct"] == right
        labels = {name: Counter(p[f"{head}_true"] for p in photos if p["species"] == name
                                and p["split"] == "train") for name in CLASSES}  # fmt: skip
        for counts in labels.values():
            counts.pop("", None)
        commonest = {name: max(sorted(c), key=c.__getitem__) for name, c in labels.items() if c}
        by_majority = sum(p[f"{head}_true"] == commonest.get(p["species"]) for p in own)
        assert found["majority_baseline"] == pytest.approx(by_majority / len(own))
        assert found["lost_in_stage1"] == pytest.approx(first / len(own))
        assert found["lost_in_stage2"] == pytest.approx((len(own) - first - right) / len(own))


def test_intervals_of_photos_not_trained_on(summary, photos):
    own = asked(photos, "test", "breed")
    animals = [f"{photo['species']}/{photo['record']}" for photo in own]
    right = np.array([photo["breed_correct"] == "1" for photo in own])
    found, claims = summary["figures"]["test"]["breed"], summary["test"]["features"]["breed"]
    assert found["num_records"] == len(set(animals)) > 10
    expected = metrics.accuracy_interval(right, np.array(animals))
    assert found["interval_95"] == claims["conditional"]["interval_95"] == pytest.approx(expected)
    assert claims["end_to_end"]["interval_95"] == found["end_to_end"]["interval_95"]
    fused = summary["per_record"]["test"]["breed"]
    low, high = fused["gain_interval_95"]
    assert low <= fused["gain"] <= high
    assert fused["gain"] == pytest.approx(fused["accuracy_fused"] - fused["accuracy_one_photo"])
    assert claims["per_record"]["interval_95"] == fused["interval_95"]
    assert "interval_95" in summary["figures"]["val"]["breed"]["end_to_end"]
    for part in ("train", "all"):
        assert "interval_95" not in summary["figures"][part]["breed"]


def test_photos_of_an_animal_fused(summary, photos):
    sizes = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4-5": (4, 5), "6-9": (6, 9), "10+": (10, 999)}
    for part, head, _ in combinations(photos):
        animals: dict[Any, list[Photo]] = defaultdict(list)
        for photo in asked(photos, part, head):
            animals[photo["species"], photo["record"], true_of(photo, head)].append(photo)
        groups: dict[str, list[tuple[int, int, bool]]] = defaultdict(list)
        for (_, _, true), own in animals.items():
            names, sums = names_of(own[0], head), Counter[int]()
            for photo in own:
                p = photo["p"][head]
                for k in sorted(range(len(p)), key=lambda k: -round(p[k], 9))[:5]:  # noqa: B023
                    sums[k] += round(p[k] * 1e9)
            winner = min(k for k, v in sums.items() if v > max(sums.values()) - 200)
            right = sum(photo[f"{head}_correct"] == "1" for photo in own)
            size = next(n for n, (low, high) in sizes.items() if low <= len(own) <= high)
            for name in ("", size):
                groups[name].append((len(own), right, names[winner] == true))
        found = summary["per_record"][part][head]
        described = {
            name: {
                "records": len(entries),
                "accuracy_per_photo": pytest.approx(
                    sum(right for _, right, _ in entries) / sum(num for num, _, _ in entries)
                ),
                "accuracy_one_photo": pytest.approx(np.mean([r / n for n, r, _ in entries])),
                "accuracy_fused": pytest.approx(np.mean([ok for _, _, ok in entries])),
            }
            for name, entries in groups.items()
        }
        every = described.pop("")
        assert found["num_records"] == every.pop("records")
        assert {key: found[key] for key in every} == every
        expected = [{"photos": name, **described[name]} for name in sizes if name in described]
        assert found["by_num_photos"] == expected
    assert len(summary["per_record"]["all"]["species"]["by_num_photos"]) == 6


def test_confidence_of_each_species_and_of_all(summary, photos):
    bounds = set()  # whether sets are longer than what is known of them
    for head in HEADS:
        found = summary["confidence"][head]
        species = {photo["species"] for photo in asked(photos, "test", head)}
        assert set(found) == {"all"} | (species if head != "species" else set())
        for name, entry in found.items():
            own = asked(photos, "test", head, None if name == "all" else name)
            limits = [fitted(head, "" if head == "species" else p["species"]) for p in own]
            sure = [float(np.float32(max(photo["p"][head]))) for photo in own]
            right = [photo[f"{head}_correct"] == "1" for photo in own]
            judged = [bool(limit) for limit in limits]
            given = [
                limit.get("threshold") is not None and s >= limit["threshold"] - 1e-6
                for s, limit in zip(sure, limits, strict=True)
            ]
            assert entry["num"] == len(own) and entry["num_fitted"] == sum(judged)
            mean = sum(given) / sum(judged) if any(judged) else None
            assert entry["coverage"] == (None if mean is None else pytest.approx(mean))
            kept = [r for r, g in zip(right, given, strict=True) if g]
            assert entry["accuracy_of_answered"] == (pytest.approx(np.mean(kept)) if kept else None)
            check_sets(entry["conformal"], own, head, limits)
            bounds |= {entry["conformal"]["is_lower_bound"]} if entry["conformal"] else set()
            for coverage, accuracy, threshold in entry["curve"]:
                answered = [r for r, s in zip(right, sure, strict=True) if s >= threshold - 2e-6]
                assert coverage == pytest.approx(len(answered) / len(own), abs=1e-6)
                assert accuracy == pytest.approx(np.mean(answered), abs=1e-6)
            assert entry["curve"][-1][0] == 1.0 and len(entry["curve"]) <= 100
            for key in ("reliability", "raw_reliability"):
                bins = np.array(entry[key])
                assert bins[:, 2].sum() == len(own)
                assert (bins[:, 1] * bins[:, 2]).sum() == pytest.approx(sum(right), abs=0.01)
                assert (np.diff(bins[:, 0]) > 0).all()
                assert (bins[:, 3] < bins[:, 4]).all()
            total = sum(c * n for c, _, n, _, _ in entry["reliability"])
            assert total == pytest.approx(sum(sure), abs=0.01)
        if head != "species":
            check_end_to_end(found["all"], photos, head)
    assert bounds == {False, True}
    assert summary["confidence"]["breed"]["cat"]["threshold"] == 0.7
    dog = summary["confidence"]["breed"]["dog"]
    assert dog["threshold"] is None
    assert dog["wanted_accuracy"] == 0.0 and dog["conformal"]["alpha"] == 0.2
    assert dog["num_with_threshold"] == 0
    assert summary["confidence"]["breed"]["all"]["threshold"] is None


def check_end_to_end(entry, photos, head):
    """A photo of a wrong species is a sure answer, wrong, in no set."""
    lost = sum(
        photo["species_pred"] != photo["species"]
        for photo in photos
        if photo["split"] == "test"
        and photo[f"{head}_true"]
        and head in CLASSES[photo["species"]]
        and photo["species_correct"]
    )
    found, sure = entry["end_to_end"], (entry["coverage"] or 0) * entry["num_fitted"]
    right = sure * (entry["accuracy_of_answered"] or 0)
    if entry["num_with_threshold"]:
        assert found["coverage"] == pytest.approx((sure + lost) / (entry["num_fitted"] + lost))
        assert found["accuracy_of_answered"] == pytest.approx(right / (sure + lost))
        assert found["accuracy_of_answered"] <= entry["accuracy_of_answered"]
    if entry["conformal"]:
        held = entry["conformal"]["coverage"] * entry["conformal"]["num"]
        expected = held / (entry["conformal"]["num"] + lost)
        assert found["conformal_coverage"] == pytest.approx(expected)


def check_sets(found, own, head, limits):
    """The sets among all classes, where the figures know but five."""
    covered, sizes, is_longer = [], [], False
    for photo, limit in zip(own, limits, strict=True):
        q = limit.get("conformal_quantile")
        if q is None:
            continue
        p, names = photo["p"][head], names_of(photo, head)
        best = max(range(len(p)), key=lambda k: (round(p[k], 12), -k))
        chosen = {k for k, v in enumerate(p) if 1 - v <= q} | {best}
        true = true_of(photo, head)
        covered.append(true in names and names.index(true) in chosen)
        sizes.append(len(chosen))
        is_longer |= len(chosen) >= 5 and len(names) > 5
    if not sizes:
        assert found is None
        return
    assert found is not None and found["num"] == len(sizes)
    alphas = {limit.get("conformal_alpha", 0.1) for limit in limits if limit}
    assert found["alpha"] == (alphas.pop() if len(alphas) == 1 else None)
    assert found["coverage"] == pytest.approx(np.mean(covered))
    assert found["is_lower_bound"] == is_longer
    assert found["mean_size"] == pytest.approx(np.mean([min(size, 5) for size in sizes]))


def test_mistakes_and_hard_classes(summary, photos):
    for head in HEADS:
        own = asked(photos, "test", head)
        pairs = Counter(
            (p["species"], true_of(p, head), p[f"{head}_pred"])
            for p in own if p[f"{head}_correct"] == "0"
        )  # fmt: skip
        support = Counter((p["species"], true_of(p, head)) for p in own)
        found = summary["top_confusions"][head]
        for entry in found:
            species, true = entry["species"], entry["true"]
            num = pairs[species, true, entry["predicted"]]
            assert entry["num"] == num > 0
            assert entry["share_of_true"] == pytest.approx(num / support[species, true])
        counts = [entry["num"] for entry in found]
        assert counts == sorted(pairs.values(), reverse=True)[:20]
        hard = summary["hardest_classes"][head]
        recall = {
            key: sum(
                (p["species"], true_of(p, head)) == key and p[f"{head}_correct"] == "1" for p in own
            ) / num
            for key, num in support.items() if num >= 5
        }  # fmt: skip
        assert [entry["recall"] for entry in hard] == pytest.approx(sorted(recall.values())[:20])
        animals = Counter((s, t) for s, t, _ in {(p["species"], true_of(p, head), p["record"])
                                                 for p in own})  # fmt: skip
        for entry in hard:
            assert entry["num_records"] == animals[entry["species"], entry["label"]]
            key = entry["species"], entry["label"]
            assert entry["recall"] == pytest.approx(recall[key]) and entry["num"] == support[key]
            given = sum(
                p[f"{head}_pred"] == key[1] and (head == "species" or p["species"] == key[0])
                for p in own
            )
            f1 = 2 * recall[key] * support[key] / (support[key] + given)
            assert entry["f1"] == pytest.approx(f1)


def test_matrices_are_written_with_their_names(folder, photos, tmp_path):
    (tmp_path / "test_breed_gone.csv").write_text("of an earlier evaluation")
    (tmp_path / "notes.txt").write_text("mine")
    write_confusions(read_heads(read_evaluation(folder)), tmp_path)
    written = set()
    for part in ("test", "all"):
        for head in HEADS:
            for species in [None] if head == "species" else CLASSES:
                own = asked(photos, part, head, species)
                if not own:
                    continue
                name = f"{part}_{head}" + (f"_{species}" if species else "")
                written.add(name)
                with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as handle:
                    header, *lines = [[c.removeprefix("'") if c[:2] in ("'=", "''") else c
                                       for c in line] for line in csv.reader(handle)]  # fmt: skip
                pairs = Counter((true_of(p, head), p[f"{head}_pred"]) for p in own)
                names = names_of(own[0], head)
                extra = sorted({true_of(p, head) for p in photos if species in (
                    None, p["species"])} - {*names, ""})  # fmt: skip
                assert header[1:] == [line[0] for line in lines]
                assert header[1 : len(names) + 1] == names
                assert set(header[len(names) + 1 :]) <= set(extra)
                cells = {
                    (line[0], answer): int(num)
                    for line in lines
                    for answer, num in zip(header[1:], line[1:], strict=True)
                }
                assert Counter(cells) == pairs
    assert len(written) > 10
    tables = {f"{name}.csv" for name in written}
    assert {path.name for path in tmp_path.iterdir()} == {*tables, "notes.txt"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(0.97349), "97.3"),
        (percent(1, 0), "100"),
        (percent(None) + percent(math.nan) + percent("x") + percent(True), ""),
        (points(0.032), "+3.2"),
        (points(-0.0304), "-3.0"),
        (points(-0.0001), "0.0"),
        (points(0.0), "0.0"),
        (points(None), ""),
        (interval([0.952, 0.991]), "95.2 - 99.1"),
        (interval((-0.04, -0.021), points), "-4.0 to -2.1"),
        (interval(None) + interval([0.1]) + interval([0.1, math.nan]) + interval("ab"), ""),
    ],
)
def test_shares_and_intervals_are_written_one_way(found, expected):
    assert found == expected
