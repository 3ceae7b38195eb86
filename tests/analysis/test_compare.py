"""The comparison of two made-up evaluations against loops over `csv.DictReader`."""

import csv
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

from petface import files
from petface.analysis.compare import (
    compare_evaluations,
    describe_comparison,
    holm,
    sign_flip_p_value,
)
from petface.errors import UserError
from petface.evaluation.details import DETAILS_FILE, MODELS
from petface.metrics import gain_interval
from tests.analysis.evaluations import HEADS_OF, LABELS, make_evaluation, make_images, read_cells


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root, images = tmp_path_factory.mktemp("two"), make_images(num_records=260)
    return (
        make_evaluation(root / "a", images, 0.4, 1),
        make_evaluation(root / "b", images, 0.9, 2),
    )


@pytest.fixture(scope="module")
def found(pair):
    return compare_evaluations(*pair)


def counted(pair, part, head, view):
    """Go through the photos that a figure counts."""
    for a, b in zip(read_cells(pair[0]), read_cells(pair[1]), strict=True):
        asked = "species" if view == "end_to_end" else head
        is_in = a["split"] == part and "" not in (a[f"{asked}_correct"], b[f"{asked}_correct"])
        if view == "end_to_end":
            is_in = is_in and a[f"{head}_true"] != "" and head in HEADS_OF[a["species"]]
        if is_in:
            yield a, b


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize(
    ("head", "view"),
    [("species", "conditional"), *((h, v) for h in LABELS for v in ("conditional", "end_to_end"))],
)
def test_counts_and_accuracies(found, pair, part, head, view):
    counts, photos, records = Counter(), [], Counter()
    for a, b in counted(pair, part, head, view):
        right = a[f"{head}_correct"] == "1", b[f"{head}_correct"] == "1"
        counts[right] += 1
        photos.append((right[1] - right[0], hash((a["species"], a["record"]))))
        records[a["species"], a["record"]] += right[1] - right[0]
    num = sum(counts.values())
    figure = found[0]["figures"][part][head][view]
    assert num == figure["num"] > 15 and figure["num_records"] == len(records)
    assert [figure[k] for k in ("both_right", "only_a", "only_b", "both_wrong")] == [
        counts[pattern] for pattern in ((True, True), (True, False), (False, True), (False, False))
    ]
    assert figure["accuracy_a"] == (counts[True, True] + counts[True, False]) / num
    assert figure["accuracy_b"] == (counts[True, True] + counts[False, True]) / num
    assert figure["difference"] == pytest.approx(figure["accuracy_b"] - figure["accuracy_a"])
    assert figure["p_value"] == sign_flip_p_value([*records.values()])
    expected = gain_interval(*map(np.array, zip(*photos, strict=True)))
    assert figure["interval_95"] == pytest.approx(expected)


def test_adjusted_for_the_tests_of_the_part(found):
    assert list(found[0]["figures"]) == ["test", "val"]
    for heads in found[0]["figures"].values():
        tests = [test for views in heads.values() for test in views.values()]
        assert len(tests) == 5
        adjusted = holm([test["p_value"] for test in tests])
        assert [test["p_holm"] for test in tests] == pytest.approx(adjusted.tolist())
        for test in tests:
            better = "B better" if test["difference"] > 0 else "A better"
            assert test["verdict"] == (better if test["p_holm"] < 0.05 else "no difference shown")
    species = found[0]["figures"]["test"]["species"]["conditional"]
    text = describe_comparison(found[0])
    shown = next(line for line in text.splitlines() if line.startswith("species"))
    assert f"{species['accuracy_a'] * 100:.1f}" in shown and "B better" in shown
    json.dumps(found[0], allow_nan=False)


def test_every_changed_answer_is_a_row(found, pair, tmp_path):
    expected = []
    for head in ("species", *LABELS):
        for a, b in zip(read_cells(pair[0]), read_cells(pair[1]), strict=True):
            one, other = a[f"{head}_pred"], b[f"{head}_pred"]
            if not one or not other or one == other:
                continue
            true = a["species"] if head == "species" else a[f"{head}_true"]
            change = ("label unknown" if not true else "better" if other == true
                      else "worse" if one == true else "both wrong")  # fmt: skip
            expected.append(
                [a["image"], a["species"], a["record"], a["split"], head, true,
                 one, a[f"{head}_prob"], other, b[f"{head}_prob"], change]
            )  # fmt: skip
    rows = found[1].to_numpy().tolist()
    assert rows == expected and {row[-1] for row in rows} >= {"better", "worse", "both wrong"}
    files.write_csv(tmp_path / "changed.csv", list(found[1]), rows)
    with (tmp_path / "changed.csv").open(newline="", encoding="utf-8") as handle:
        read_back = [[files.plain_cell(v) for v in r.values()] for r in csv.DictReader(handle)]
    assert read_back == rows


def test_only_common_images_are_compared_and_said(tmp_path):
    images = make_images(num_records=80)
    a = make_evaluation(tmp_path / "a", images[:-20], 0.5, 1)
    moved = [
        row | ({"split": "train"} if row["split"] == "test" and row["record"] < "000020" else {})
        for row in images[30:]
    ]
    b = make_evaluation(tmp_path / "b", moved[::-1], 0.7, 2, data="d2")
    comparison, rows = compare_evaluations(a, b)
    notes = " ".join(comparison["notes"])
    common = [row for row in images[:-20] if row["image"] in {r["image"] for r in moved}]
    both = [row for row in common if row["split"] != "test" or row["record"] >= "000020"]
    assert f"the {len(common)} common images (30 only in A, 20 only in B)" in notes
    assert f"{len(common) - len(both)} images stand in different parts" in notes
    assert comparison["images"]["test"] == sum(row["split"] == "test" for row in both)
    assert comparison["images"]["common"] == len(common) > len(both)
    truth = {row["image"]: row for row in images}
    theirs = {row["image"]: row for row in read_cells(b)}
    for row in rows.to_numpy().tolist():
        head = row[4]
        assert theirs[row[0]][f"{head}_pred"] == row[8]
        assert row[5] == (truth[row[0]]["species"] if head == "species"
                          else truth[row[0]][f"{head}_true"])  # fmt: skip


def test_labels_that_changed_and_a_specialist_that_one_side_lacks_are_named(tmp_path):
    images = make_images(num_records=60)
    a = make_evaluation(tmp_path / "a", images, 0.5, 1)
    renamed = [r | {"gender_true": "male"} if r["gender_true"] == "female" else r for r in images]
    lacking = HEADS_OF | {"dog": ()}
    b = make_evaluation(tmp_path / "b", renamed, 0.7, 2, data="d2", heads_of=lacking)
    comparison, rows = compare_evaluations(a, b)
    notes = " ".join(comparison["notes"])
    num = sum(r["gender_true"] == "female" for r in images)
    assert f"gender: {num} images have another label in A than in B" in notes
    assert set(rows.loc[rows["head"] == "gender", "truth"]) == {"", "male"}
    assert "breed: only A has a specialist with this head for dog" in notes
    cats = [r for r in images if r["species"] == "cat" and r["split"] == "test"]
    known = sum(r["breed_true"] != "" and r["status"] == "ok" for r in cats)
    assert comparison["figures"]["test"]["breed"]["end_to_end"]["num"] == known


def test_equal_evaluations_differ_in_nothing_and_may_have_no_test_photo(tmp_path):
    images = make_images(num_records=40)
    folders = [make_evaluation(tmp_path / name, images, 0.6, 3) for name in "ab"]
    comparison, rows = compare_evaluations(*folders)
    assert rows.empty and list(rows)[-1] == "change"
    heads = [views for part in comparison["figures"].values() for views in part.values()]
    assert len(heads) > 3
    for test in (test for views in heads for test in views.values()):
        assert test["difference"] == 0 and test["p_value"] == test["p_holm"] == 1
        assert test["verdict"] == "no difference shown"
    images = [row | {"split": "train"} for row in images[:9]]
    folders = [make_evaluation(tmp_path / name, images, 0.6, k) for k, name in enumerate("ab")]
    comparison, _ = compare_evaluations(*folders)
    assert comparison["figures"] == {"test": {}, "val": {}}
    assert "no photo that both answered" in describe_comparison(comparison)
    json.dumps(comparison, allow_nan=False)


def test_wrong_folders_are_named_with_the_way_out(pair, tmp_path):
    other = [r | {"image": "new/" + r["image"]} for r in make_images(num_records=5)]
    strange = make_evaluation(tmp_path / "strange", other, 0.5, 1, data="d3")
    images = make_images(num_records=5)
    twice = make_evaluation(tmp_path / "twice", [*images, images[0]], 0.5, 1)
    with pytest.raises(UserError, match="twice/.* names an image twice"):
        compare_evaluations(pair[0], twice)
    with pytest.raises(UserError, match="no image in common.*--images-root"):
        compare_evaluations(pair[0], strange)
    old = make_evaluation(tmp_path / "old", other, 0.5, 1)
    (old / DETAILS_FILE).unlink()
    with pytest.raises(UserError, match=f"holds no {DETAILS_FILE}; run: .*--force"):
        compare_evaluations(pair[0], old)
    (old / DETAILS_FILE).write_bytes((pair[0] / DETAILS_FILE).read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged"):
        compare_evaluations(pair[0], old)
    for content in ("{", "{}", "[]"):
        (strange / MODELS).write_text(content)
        with pytest.raises(UserError, match=f"{MODELS} (cannot|does not)"):
            compare_evaluations(pair[0], strange)


def all_flips(gain):
    """Swap A and B in every possible set of records."""
    flipped = [
        abs(sum(s * g for s, g in zip(signs, gain, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(gain))
    ]
    return sum(value >= abs(sum(gain)) for value in flipped) / len(flipped)


@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_the_share_of_all_flips(seed):
    draw = np.random.default_rng(seed)
    gain = draw.integers(-4, 6, draw.integers(1, 12)).tolist()
    assert sign_flip_p_value(gain) == pytest.approx(all_flips(gain), abs=1e-12)


def test_hand_made_cases():
    assert sign_flip_p_value([0, 0]) == sign_flip_p_value([]) == 1.0
    assert sign_flip_p_value([7]) == 1.0  # one record shows nothing
    assert sign_flip_p_value([3] * 40) == pytest.approx(2 / 2**40)
    # one photo a record: the exact McNemar test, 3 against 12
    p_value = sign_flip_p_value([-1] * 3 + [1] * 12 + [0] * 40)
    assert p_value == pytest.approx(binomtest(3, 15).pvalue)
    assert holm([0.01, 0.04, 0.03, 0.5]).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).tolist() == []
