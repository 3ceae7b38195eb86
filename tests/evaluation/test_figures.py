"""The figures of an evaluation's details against loops over photos and scikit-learn."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from petface import metrics
from petface.evaluation.details import HEADS, read_evaluation
from petface.evaluation.figures import interval, percent, points, write_confusions
from tests.evaluation.made_evaluation import CLASSES, SPECIES, fitted

PARTS = ("train", "val", "test", "all")


@pytest.fixture(scope="module")
def answers(photos):
    """A row for each head of each photo that stage 1 answered, where the label is known."""
    rows = []
    for photo in photos:
        for head in ("species", *CLASSES[photo["species"]]):
            row = {key: photo[key] for key in ("species", "record", "split")} | {"head": head}
            row["true"] = photo["species"] if head == "species" else photo[f"{head}_true"]
            if not photo["species_correct"] or not row["true"]:
                continue
            row["pred"] = photo[f"{head}_pred"]
            row["is_asked"] = photo[f"{head}_correct"] != ""
            row["right"] = photo[f"{head}_correct"] == "1"
            names = SPECIES if head == "species" else CLASSES[photo["species"]][head]
            row |= {"names": names, "size": len(names), "rank": 0}
            if row["is_asked"]:
                p, raw = row["p"], row["raw"] = photo["p"][head], photo["raw"][head]
                best = sorted(range(len(raw)), key=lambda k: (-round(raw[k], 12), k))  # noqa: B023
                ranked = [names[k] for k in best]
                # behind all where the truth is none of them
                row["rank"] = 1 + [*ranked, row["true"]].index(row["true"])
                row["best"], row["sure"] = ranked[0], float(np.float32(max(p)))
                row["fitted"] = fitted(head, "" if head == "species" else photo["species"])
            rows.append(row)
    return pd.DataFrame(rows)


def cases(answers, summary):
    """Yield head, species, the answers that count and what the summary tells of them."""
    for part in PARTS:
        for head in HEADS:
            for species in (None, *CLASSES):
                own = answers[answers["head"] == head]
                own = own if part == "all" else own[own["split"] == part]
                own = own if species is None else own[own["species"] == species]
                if own["is_asked"].any() and (species is None or part == "test"):
                    whole, each = summary["figures"][part], summary["per_species"]["test"]
                    yield head, species, own, (each[species] if species else whole)[head]


def of_test(answers, head):
    marks = answers["is_asked"] & (answers["head"] == head) & (answers["split"] == "test")
    return answers[marks]


def mean(values, **tolerance):
    return pytest.approx(np.mean(values), **tolerance) if len(values) else None


def naive_ece(sure, right, num_bins=15):
    """Bins of equal mass; equal confidences share the bin of the first of them."""
    bins = defaultdict(list)
    for confidence, is_right in zip(sure, right, strict=True):
        place = sum(other < confidence for other in sure)
        bins[place * num_bins // len(sure)].append(confidence - is_right)
    return sum(abs(sum(held)) for held in bins.values()) / len(sure)


def test_ranks_and_losses(summary, answers):
    num_cases = 0
    for head, species, own, found in cases(answers, summary):
        num_cases += 1
        own = own[own["is_asked"]]
        right, size = own["right"], own["size"]
        assert found["num"] == len(own) and found["correct"] == right.sum()
        if head == "species" and species is not None:
            continue
        for k in (3, 5):
            assert found[f"top{k}"] == mean(own["rank"][size > k] <= k)
        known = own[own["rank"] <= size]
        assert found["num_not_a_class"] == len(own) - len(known)
        is_less = len(known) < len(own)
        assert found["known_classes"].get("num") == (len(known) if is_less else None)
        nll, brier = [], []
        for p, names, true in known[["p", "names", "true"]].itertuples(index=False):
            nll.append(-math.log(p[names.index(true)]))
            brier.append(sum((v - (c == true)) ** 2 for c, v in zip(names, p, strict=True)))
        assert found["nll"] == mean(nll, rel=1e-5)
        assert found["brier"] == mean(brier, rel=1e-5)
        sure = [float(np.float32(max(p))) for p in own["p"]]
        assert found["ece"] == pytest.approx(naive_ece(sure, right), abs=1e-6)
    assert num_cases > 30 and all(set(summary["figures"][part]) == set(HEADS) for part in PARTS)
    assert summary["figures"]["test"]["gender"]["num_not_a_class"] > 5
    assert summary["per_species"]["test"]["cat"]["gender"]["top3"] is None


def test_class_figures_equal_scikit_learn(summary, answers):
    for head, species, own, found in cases(answers, summary):
        if head == "species" and species is not None:
            continue
        own = own[own["is_asked"]]
        group = own["species"] if head != "species" else own["head"]
        true, given = group + "/" + own["true"], group + "/" + own["pred"]
        scores = precision_recall_fscore_support(true, given, average="macro", zero_division=0)
        names = ("macro_precision", "macro_recall", "macro_f1")
        assert [found[n] for n in names] == pytest.approx(scores[:3])
        assert found["balanced_accuracy"] == mean(own["right"].groupby(true).mean())
        # chance knows the species
        by_chance = np.mean([(given[group == g] == t).mean() for g, t in zip(group, true)])  # noqa: B905
        kappa = (found["accuracy"] - by_chance) / (1 - by_chance) if by_chance < 1 else None
        assert found["kappa"] == (None if kappa is None else pytest.approx(kappa))


def test_one_species_of_stage_1_is_one_class(summary, photos, answers):
    own = of_test(answers, "species")
    for species in CLASSES:
        found = summary["per_species"]["test"][species]["species"]
        names = ["num", "correct", "accuracy", "num_records", "interval_95"]
        assert list(found) == names
        assert found["accuracy"] == mean(own["right"][own["true"] == species])
    trained = Counter(p["species"] for p in photos if p["split"] == "train")
    by_majority = mean(own["true"] == max(sorted(trained), key=trained.__getitem__))
    assert summary["figures"]["test"]["species"]["majority_baseline"] == by_majority


def test_end_to_end_counts_a_wrong_species(summary, photos, answers):
    trained = defaultdict(Counter)  # also photos that were not answered
    for photo in photos:
        for head in HEADS[1:] if photo["split"] == "train" else ():
            if photo[f"{head}_true"]:
                trained[photo["species"], head][photo[f"{head}_true"]] += 1
    commonest = {key: max(sorted(own), key=own.__getitem__) for key, own in trained.items()}
    for head, _, own, found in cases(answers, summary):
        if head == "species":
            continue
        whole = found["end_to_end"]
        assert whole["num"] == len(own) and whole["correct"] == own["right"].sum()
        by_majority = [commonest.get((s, head)) for s in own["species"]] == own["true"]
        assert found["majority_baseline"] == mean(by_majority)


def test_intervals_of_photos_not_trained_on(summary, answers):
    own = of_test(answers, "breed")
    animals = (own["species"] + "/" + own["record"]).to_numpy(str)
    found = summary["figures"]["test"]["breed"]
    assert found["num_records"] == len(set(animals)) > 10
    expected = metrics.accuracy_interval(own["right"].to_numpy(bool), animals)
    assert found["interval_95"] == pytest.approx(expected)
    fused = summary["per_record"]["test"]["breed"]
    low, high = fused["gain_interval_95"]
    assert low <= fused["gain"] <= high
    assert fused["gain"] == pytest.approx(fused["accuracy_fused"] - fused["accuracy_one_photo"])
    assert "interval_95" in summary["figures"]["val"]["breed"]["end_to_end"]
    for part in ("train", "all"):
        assert "interval_95" not in summary["figures"][part]["breed"]


def test_photos_of_an_animal_fused(summary, answers):
    num_photos = set()
    for head in HEADS:
        right, fused = [], []
        for (_, _, true), animal in of_test(answers, head).groupby(["species", "record", "true"]):
            sums = Counter()
            for p in animal["p"]:
                for k in sorted(range(len(p)), key=lambda k: -round(p[k], 9))[:5]:  # noqa: B023
                    sums[k] += round(p[k] * 1e9)
            winner = min(k for k, v in sums.items() if v > max(sums.values()) - 200)
            num_photos.add(len(animal))
            right.append(animal["right"].mean())
            fused.append(animal["names"].iloc[0][winner] == true)
        found = summary["per_record"]["test"][head]
        assert found["num_records"] == len(fused)
        assert found["accuracy_one_photo"] == mean(right)
        assert found["accuracy_fused"] == mean(fused)
    assert len(num_photos) > 5


def test_confidence_of_each_species_and_of_all(summary, answers):
    for head in HEADS:
        found, tested = summary["confidence"][head], of_test(answers, head)
        names = set(tested["species"]) if head != "species" else set()
        assert set(found) == {"all"} | names
        for name, entry in found.items():
            own = tested if name == "all" else tested[tested["species"] == name]
            sure, right = own["sure"], own["right"].astype(bool)
            thresholds = [own_fit.get("threshold") for own_fit in own["fitted"]]
            given = sure >= np.array([math.inf if t is None else t - 1e-6 for t in thresholds])
            judged = own["fitted"].astype(bool)
            assert entry["num"] == len(own)
            assert entry["coverage"] == mean(given[judged])
            assert entry["accuracy_of_answered"] == mean(right[given])
            if name != "all":
                assert "curve" not in entry
                continue
            for coverage, accuracy, threshold in entry["curve"]:
                answered = right[sure >= threshold - 2e-6]
                assert coverage == pytest.approx(len(answered) / len(own), abs=1e-6)
                assert accuracy == mean(answered, abs=1e-6)
            assert entry["curve"][-1][0] == 1.0 and len(entry["curve"]) <= 100
            for key in ("reliability", "raw_reliability"):
                bins = np.array(entry[key])
                assert bins[:, 2].sum() == len(own)
                assert (bins[:, 1] * bins[:, 2]).sum() == pytest.approx(right.sum(), abs=0.01)
                assert (np.diff(bins[:, 0]) > 0).all() and (bins[:, 3] < bins[:, 4]).all()
            total = sum(c * n for c, _, n, _, _ in entry["reliability"])
            assert total == pytest.approx(sure.sum(), abs=0.01)
    assert summary["confidence"]["breed"]["cat"]["threshold"] == 0.7
    dog = summary["confidence"]["breed"]["dog"]
    assert dog["threshold"] is None and dog["wanted_accuracy"] == dog["coverage"] == 0.0
    assert summary["confidence"]["breed"]["all"]["threshold"] is None


def test_mistakes_and_hard_classes(summary, answers):
    for head in HEADS:
        own = of_test(answers, head)
        key = ["species", "true"]
        pairs = own[~own["right"].astype(bool)].groupby([*key, "pred"]).size()
        support = own.groupby(key).size()
        found = summary["top_confusions"][head]
        for entry in found:
            place = entry["species"], entry["true"]
            assert entry["num"] == pairs[(*place, entry["predicted"])]
            assert entry["share_of_true"] == pytest.approx(entry["num"] / support[place])
        assert [entry["num"] for entry in found] == sorted(pairs, reverse=True)[:20]
        hard = summary["hardest_classes"][head]
        recall = own.groupby(key)["right"].mean()
        lowest = sorted(recall[support >= 5])[:20]
        assert [entry["recall"] for entry in hard] == pytest.approx(lowest)
        animals = own.groupby(key)["record"].nunique()
        for entry in hard:
            place = species, label = entry["species"], entry["label"]
            assert entry["num_records"] == animals[place] and entry["num"] == support[place]
            assert entry["recall"] == pytest.approx(recall[place])
            given = own["pred"] == label if head == "species" else (
                (own["pred"] == label) & (own["species"] == species)
            )  # fmt: skip
            f1 = 2 * recall[place] * support[place] / (support[place] + given.sum())
            assert entry["f1"] == pytest.approx(f1)


def test_matrices_are_written_with_their_names(folder, answers, tmp_path):
    for part in ("test", "all"):
        (tmp_path / f"{part}_breed_gone.csv").write_text("of an earlier evaluation")
    (tmp_path / "notes.txt").write_text("mine")
    write_confusions(read_evaluation(folder).heads, tmp_path)
    written = {"notes.txt"}
    for head in HEADS:
        asked = of_test(answers, head)
        for species in [""] if head == "species" else sorted(set(asked["species"])):
            own = asked[asked["species"] == species] if species else asked
            name = "_".join(filter(None, ("test", head, species))) + ".csv"
            written.add(name)
            with (tmp_path / name).open(newline="", encoding="utf-8") as handle:
                header, *lines = [[c.removeprefix("'") if c[:2] in ("'=", "''") else c
                                   for c in line] for line in csv.reader(handle)]  # fmt: skip
            names = own["names"].iloc[0]
            assert header[1:] == [line[0] for line in lines]
            assert header[1 : len(names) + 1] == names
            assert not set(header[len(names) + 1 :]) & set(names)
            cells = {
                (line[0], answer): int(num)
                for line in lines
                for answer, num in zip(header[1:], line[1:], strict=True)
            }
            assert Counter(cells) == Counter(zip(own["true"], own["pred"], strict=True))
    assert len(written) > 5
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(0.97349), "97.3"),
        (percent(1, 0), "100"),
        (percent(None) + percent(math.nan) + percent("x") + percent(True), ""),
        (points(0.032), "+3.2"),
        (points(-0.0304), "-3.0"),
        (points(-0.0001) + points(0.0), "0.00.0"),
        (points(None), ""),
        (interval([0.952, 0.991]), "95.2 - 99.1"),
        (interval((-0.04, -0.021), points), "-4.0 to -2.1"),
        (interval(None) + interval([0.1]) + interval([0.1, math.nan]) + interval("ab"), ""),
    ],
)
def test_shares_and_intervals_are_written_one_way(found, expected):
    assert found == expected
