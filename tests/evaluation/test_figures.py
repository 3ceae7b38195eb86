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
from petface.evaluation.details import HEADS, read_evaluation, read_heads
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
            row["lost"] = photo["species_pred"] != photo["species"]
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
                place = summary["figures"] if species is None else summary["per_species"]
                if own["is_asked"].any():
                    found = place[part] if species is None else place[part][species]
                    yield head, species, own, found[head]


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
    for _, _, own, found in cases(answers, summary):
        num_cases += 1
        own = own[own["is_asked"]]
        right, size = own["right"], own["size"]
        assert found["num"] == len(own) and found["correct"] == right.sum()
        for k in (3, 5):
            hits = own["rank"][size > k] <= k
            assert found[f"num_top{k}"] == len(hits) and found[f"top{k}"] == mean(hits)
        assert found["rescued_by_top5"] == mean(own["rank"][(size > 5) & ~right] <= 5)
        known = own[own["rank"] <= size]
        assert found["num_not_a_class"] == len(own) - len(known)
        for prefix, column in (("", "p"), ("raw_", "raw")):
            nll, brier = [], []
            for p, names, true in known[[column, "names", "true"]].itertuples(index=False):
                nll.append(-math.log(p[names.index(true)]))
                brier.append(sum((v - (c == true)) ** 2 for c, v in zip(names, p, strict=True)))
            assert found[f"{prefix}nll"] == mean(nll, rel=1e-5)
            assert found[f"{prefix}brier"] == mean(brier, rel=1e-5)
            sure = [float(np.float32(max(p))) for p in own[column]]
            assert found[f"{prefix}ece"] == pytest.approx(naive_ece(sure, right), abs=1e-6)
    assert num_cases > 60 and all(set(summary["figures"][part]) == set(HEADS) for part in PARTS)
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
    scores = precision_recall_fscore_support(
        own["true"], own["pred"], labels=list(CLASSES), zero_division=0
    )
    for species, precision, recall, f1, num in zip(CLASSES, *scores, strict=True):
        found = summary["per_species"]["test"][species]["species"]
        assert [found[key] for key in ("precision", "recall", "f1")] == pytest.approx(
            [precision, recall, f1]
        )
        assert found["num"] == num and found["kappa"] is found["macro_f1"] is None
    trained = Counter(p["species"] for p in photos if p["split"] == "train")
    by_majority = mean(own["true"] == max(sorted(trained), key=trained.__getitem__))
    assert summary["test"]["species"]["majority_baseline"] == by_majority


def test_points_lost_in_each_stage(summary, photos, answers):
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
        assert found["lost_in_stage1"] == mean(own["lost"])
        assert found["lost_in_stage2"] == mean(~own["lost"] & ~own["right"])


def test_intervals_of_photos_not_trained_on(summary, answers):
    own = of_test(answers, "breed")
    animals = (own["species"] + "/" + own["record"]).to_numpy(str)
    found, claims = summary["figures"]["test"]["breed"], summary["test"]["features"]["breed"]
    assert found["num_records"] == len(set(animals)) > 10
    expected = metrics.accuracy_interval(own["right"].to_numpy(bool), animals)
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


def test_photos_of_an_animal_fused(summary, answers):
    sizes = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4-5": (4, 5), "6-9": (6, 9), "10+": (10, 999)}
    for part in PARTS:
        for head in HEADS:
            own = answers[answers["is_asked"] & (answers["head"] == head)]
            own = own if part == "all" else own[own["split"] == part]
            groups = defaultdict(list)
            for (_, _, true), animal in own.groupby(["species", "record", "true"]):
                sums = Counter()
                for p in animal["p"]:
                    for k in sorted(range(len(p)), key=lambda k: -round(p[k], 9))[:5]:  # noqa: B023
                        sums[k] += round(p[k] * 1e9)
                winner = min(k for k, v in sums.items() if v > max(sums.values()) - 200)
                num = len(animal)
                size = next(n for n, (low, high) in sizes.items() if low <= num <= high)
                for name in ("", size):
                    is_right = animal["names"].iloc[0][winner] == true
                    groups[name].append((num, animal["right"].sum(), is_right))
            described = {}
            for name, entries in groups.items():
                num, right, fused = np.array(entries).T
                described[name] = {
                    "records": len(num),
                    "accuracy_per_photo": pytest.approx(right.sum() / num.sum()),
                    "accuracy_one_photo": mean(right / num),
                    "accuracy_fused": mean(fused),
                }
            found, every = summary["per_record"][part][head], described.pop("")
            assert found["num_records"] == every.pop("records")
            assert {key: found[key] for key in every} == every
            expected = [{"photos": name, **described[name]} for name in sizes if name in described]
            assert found["by_num_photos"] == expected
    assert len(summary["per_record"]["all"]["species"]["by_num_photos"]) == 6


def test_confidence_of_each_species_and_of_all(summary, answers):
    bounds = set()  # whether sets are longer than what is known of them
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
            assert entry["num"] == len(own) and entry["num_fitted"] == judged.sum()
            assert entry["coverage"] == mean(given[judged])
            assert entry["accuracy_of_answered"] == mean(right[given])
            check_sets(entry["conformal"], own)
            bounds |= {entry["conformal"]["is_lower_bound"]} if entry["conformal"] else set()
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
        if head != "species":
            lost = answers[(answers["head"] == head) & (answers["split"] == "test")]["lost"].sum()
            check_end_to_end(found["all"], lost)
    assert bounds == {False, True}
    assert summary["confidence"]["breed"]["cat"]["threshold"] == 0.7
    dog = summary["confidence"]["breed"]["dog"]
    assert dog["threshold"] is None and dog["num_with_threshold"] == 0
    assert dog["wanted_accuracy"] == 0.0 and dog["conformal"]["alpha"] == 0.2
    assert summary["confidence"]["breed"]["all"]["threshold"] is None


def check_end_to_end(entry, lost):
    """A photo of a wrong species is a sure answer, wrong, in no set."""
    found, sure = entry["end_to_end"], (entry["coverage"] or 0) * entry["num_fitted"]
    right = sure * (entry["accuracy_of_answered"] or 0)
    if entry["num_with_threshold"]:
        assert found["coverage"] == pytest.approx((sure + lost) / (entry["num_fitted"] + lost))
        assert found["accuracy_of_answered"] == pytest.approx(right / (sure + lost))
        assert found["accuracy_of_answered"] <= entry["accuracy_of_answered"]
    if sets := entry["conformal"]:
        expected = sets["coverage"] * sets["num"] / (sets["num"] + lost)
        assert found["conformal_coverage"] == pytest.approx(expected)


def check_sets(found, own):
    """The sets among all classes, where the figures know but five."""
    covered, sizes, is_longer = [], [], False
    columns = own[["p", "names", "true", "best", "fitted"]]
    for p, names, true, best, limit in columns.itertuples(index=False):
        q = limit.get("conformal_quantile")
        if q is not None:
            chosen = {names[k] for k, v in enumerate(p) if 1 - v <= q} | {best}
            covered.append(true in chosen)
            sizes.append(len(chosen))
            is_longer |= len(chosen) >= 5 and len(names) > 5
    if not sizes:
        assert found is None
        return
    assert found is not None and found["num"] == len(sizes)
    alphas = {limit.get("conformal_alpha", 0.1) for limit in own["fitted"] if limit}
    assert found["alpha"] == (alphas.pop() if len(alphas) == 1 else None)
    assert found["coverage"] == mean(covered) and found["is_lower_bound"] == is_longer
    assert found["mean_size"] == mean([min(size, 5) for size in sizes])


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
    (tmp_path / "test_breed_gone.csv").write_text("of an earlier evaluation")
    (tmp_path / "notes.txt").write_text("mine")
    write_confusions(read_heads(read_evaluation(folder)), tmp_path)
    written = {"notes.txt"}
    for part in ("test", "all"):
        for head in HEADS:
            asked = answers[answers["is_asked"] & (answers["head"] == head)]
            for species in [""] if head == "species" else sorted(set(asked["species"])):
                own = asked[asked["species"] == species] if species else asked
                own = own if part == "all" else own[own["split"] == part]
                if not len(own):
                    continue
                name = "_".join(filter(None, (part, head, species))) + ".csv"
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
    assert len(written) > 11
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
