"""Labels that spreadsheets run, pages execute and naive readers split, from the CSV to the CSV."""

from __future__ import annotations

import csv
import re
import signal

import pandas
import pytest
import torch

from petface.files import plain_cell
from tests import naive, scripts
from tests.conftest import TINY_STAGE1

ODD = {
    "Plain": '=HYPERLINK("http://x","y")',
    "Bulldog, Olde mix": "@<script>alert(1)</script>",
    "P. t. verus": "-\u202eline\nbreak 🐈",
}


@pytest.fixture(scope="module")
def runs(tree, stage1_run, stage2_flags, evaluation_flags, module_folder):
    """A specialist of cats whose breeds have odd names, its evaluation and its answers."""
    folder = module_folder
    assert stage1_run.result.code == 0  # it made splits.csv
    odd = tree.copy(folder / "data")
    path = odd.annotations / "cat.csv"
    with path.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    place = header.index("Breed")
    for row in rows:
        row[place] = ODD.get(row[place], row[place])
    with path.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows, [" 3.0 ", *rows[3][1:place], "other",
                                                     *rows[3][place + 1 :]]])  # fmt: skip
    here = lambda flags: [str(f).replace(str(tree.root), str(odd.root)) for f in flags]  # noqa: E731
    train = [*here(stage2_flags), "--runs-root", folder, "--species", "cat", "--phase-epochs", 1, 1]
    ask = here(evaluation_flags)
    ask[ask.index("--stage2-folder") + 1] = folder / "stage2"
    models = ask[ask.index("--stage1-checkpoint") : ask.index("--batch-size")]
    for name, arguments in [
        (scripts.STAGE2, train),
        (scripts.INFERENCE, [*ask, "--out-dir", folder / "evaluation"]),
        (scripts.INFERENCE, ["predict", odd.images / "cat", *models, "--out", folder / "a.csv"]),
    ]:
        scripts.run_forked(name, arguments, folder).checked()
    flags = [*odd.flags, *TINY_STAGE1, "--runs-root", folder, "--run-name", "stage1"]
    hook = scripts.SignalAtStep(1, signal.SIGTERM)
    assert scripts.run_forked(scripts.STAGE1, flags, folder, hook).code == 143
    return folder


def table(path):
    return pandas.read_csv(path, dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("evaluation/petface_eval_per_image.csv", "breed_true"),
        ("evaluation/petface_eval_per_image.csv", "breed_pred"),
        ("a.csv", "breed_pred"),
    ],
)
def test_the_labels_come_back_through_pandas_and_are_no_formula(runs, name, column):
    cells = set(table(runs / name)[column]) - {""}
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert {plain_cell(cell) for cell in cells} <= {*ODD.values(), *ODD}
    assert {plain_cell(cell) for cell in cells} & set(ODD.values())


def test_numbers_stay_numbers_and_no_row_shifts(runs, tree):
    rows = table(runs / "evaluation/petface_eval_per_image.csv")
    assert rows["image"].tolist() == naive.photos(tree.images)
    assert set(rows["status"]) <= {"ok", "no_specialist", "unreadable", "too_large"}
    pandas.to_numeric(rows["species_prob"][rows["species_prob"] != ""])


def test_the_checkpoint_keeps_the_spelling_and_the_tables_of_a_run_are_neutral(runs):
    best = torch.load(runs / "stage2/cat/cat_best.pt", weights_only=True)
    assert set(best["head_vocabs"]["breed"]) == set(ODD.values()) - {""}
    for path in (runs / "stage2/cat").glob("confusion_*_breed.csv"):
        with path.open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        assert header[1:] == [row[0] for row in rows]
        assert [plain_cell(name) for name in header[1:]] == best["head_vocabs"]["breed"]
        assert not any(name.startswith(("=", "@", "-")) for name in header[1:])


@pytest.mark.parametrize("run", ["stage1", "stage2/cat"])
def test_rows_of_one_record_that_contradict_each_other_are_listed(runs, run):
    rows = table(runs / run / "label_conflicts.csv")
    (row,) = [row for _, row in rows.iterrows() if row["feature"] == "breed"]
    assert (row["species"], row["record"]) == ("cat", "000003")
    assert "other" in row["values"] and not row["values"].startswith(("=", "@", "-"))


def test_pages_show_the_labels_and_run_nothing(runs):
    pages = [*runs.rglob("*.html")]
    assert len(pages) >= 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script|\u202e", text), page
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert "&lt;script&gt;alert(1)" in shown
