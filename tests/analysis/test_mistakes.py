"""The list of mistakes against a loop over the rows."""

import csv
import math

import numpy as np
import pytest

from petface.analysis.mistakes import COLUMNS, asked_places, worst_mistakes, write_mistakes
from petface.files import plain_cell
from tests.analysis.error_cases import make_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_evaluation(tmp_path_factory.mktemp("evaluation") / "out")


def wrong_rows(rows, head):
    found = [
        (place, row)
        for place, row in enumerate(rows)
        if row["split"] == "test" and row[f"{head}_correct"] == 0
    ]
    return sorted(found, key=lambda item: -item[1][f"{head}_prob"])


@pytest.mark.parametrize("head", ["species", "breed"])
def test_every_wrong_answer_of_the_test_part_the_surest_first(made, head):
    evaluation, rows = made
    expected = wrong_rows(rows, head)
    found = worst_mistakes(evaluation, head)
    assert len(found) == len(expected) > 10
    assert found["place"].tolist() == [place for place, _ in expected]
    assert found["image"].tolist() == [row["image"] for _, row in expected]
    assert found["predicted"].tolist() == [row[f"{head}_pred"] for _, row in expected]
    true = "species" if head == "species" else "breed_true"
    assert found["true"].tolist() == [row[true] for _, row in expected]
    np.testing.assert_allclose(
        found["probability"], [row[f"{head}_prob"] for _, row in expected], atol=1e-6
    )
    for (place, row), p, rank in zip(
        expected, found["true_probability"], found["rank"], strict=True
    ):
        if row[true] == "Unheard":
            assert math.isnan(p) and rank > len(evaluation.class_names(head, row["species"]))
        else:
            details = evaluation.details[head][place]
            names = evaluation.class_names(head, row["species"])
            order = details["top"].tolist()
            assert rank == 1 + order.index(names.index(row[true])) > 1
            assert p == pytest.approx(details["top_prob"][rank - 1], rel=1e-4)
    assert worst_mistakes(evaluation, head, 3)["place"].tolist() == found["place"].tolist()[:3]


def test_the_files(made, tmp_path):
    evaluation, rows = made
    worst = write_mistakes(tmp_path / "mistakes.csv", evaluation, 5)
    with (tmp_path / "mistakes.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    expected = [(h, row) for h in ("species", "breed") for _, row in wrong_rows(rows, h)]
    assert [(r["head"], r["image"]) for r in table] == [(h, r["image"]) for h, r in expected]
    cells = [plain_cell(r["predicted"]) for r in table]
    assert cells == [row[f"{h}_pred"] for h, row in expected] and "=Persian" in cells
    assert all(not r["predicted"].startswith("=") for r in table)
    assert list(worst) == ["species", "breed"]  # heads that were never asked are left out
    for head, entries in worst.items():
        own = [r for r in table if r["head"] == head][:5]
        assert [e["image"] for e in entries] == [r["image"] for r in own]
        assert all(tuple(e) == COLUMNS for e in entries)
        for entry, row in zip(entries, own, strict=True):
            assert row["true_probability"] == str(
                "" if entry["true_probability"] is None else entry["true_probability"]
            )


def test_asked_places(made):
    evaluation, rows = made
    expected = [k for k, r in enumerate(rows) if r["split"] == "test" and r["breed_correct"] != ""]
    assert asked_places(evaluation, "breed").tolist() == expected
    assert not len(asked_places(evaluation, "gender"))
