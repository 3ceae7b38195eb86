"""Odd photos, labels and JSON on the real scripts: one rule each, one line, nothing executed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from petface.data.splits import read_side_file
from petface.errors import UserError
from petface.evaluation.details import read_evaluation
from petface.files import plain_cell
from petface.resumable import ResumableTable
from tests import naive, scripts
from tests.conftest import TINY_STAGE1
from tools import cards, show_evaluation

# ---- Photos of every kind and size, and odd names ----


def rows_of(path):
    return {Path(plain_cell(row["image"])).name: row for row in naive.rows_of(path)}


def twins(pixels):
    """Kind -> (file name, picture, save options, the RGB pixels that the rule makes of it)."""
    grey = pixels[:, :, 0]
    three = np.stack([grey] * 3, axis=2)
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:, : alpha.shape[1] // 2] = 0
    black = np.where(alpha[:, :, None] > 0, pixels, 0).astype(np.uint8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    palette = Image.fromarray(pixels).quantize(16)
    first, second = Image.fromarray(pixels).quantize(64), Image.new("P", grey.shape[::-1])
    rgb = first.convert("RGB")
    bits = grey > 127
    cmyk = Image.fromarray(255 - pixels)
    cmyk = Image.merge("CMYK", [*cmyk.split(), Image.new("L", cmyk.size)])
    return {
        "16bit.png": (deep, {}, three),
        "grey.png": (Image.fromarray(grey), {}, three),
        "palette.png": (palette, {}, np.array(palette.convert("RGB"))),
        "alpha.png": (Image.fromarray(np.dstack([pixels, alpha])), {}, black),
        "bits.png": (Image.fromarray(bits), {}, np.stack([bits * np.uint8(255)] * 3, axis=2)),
        "animated.gif": (first, {"save_all": True, "append_images": [second]}, np.array(rgb)),
        "turned.png": (Image.fromarray(pixels), {"exif": exif}, np.rot90(pixels, -1)),
        "cmyk.tiff": (cmyk, {}, np.array(cmyk.convert("RGB"))),
    }


def test_each_kind_is_answered_as_the_plain_photo_that_its_rule_makes(
    tree, model_flags, script, tmp_path
):
    """In bulk and one by one; what training and evaluation read is `decode`, too."""
    pixels = np.asarray(Image.open(tree.images / naive.photos(tree.images)[0]).convert("RGB"))
    for folder in ("odd", "plain"):
        (tmp_path / folder).mkdir()
    for name, (picture, options, rgb) in twins(pixels).items():
        picture.save(tmp_path / "odd" / name, **options)
        Image.fromarray(np.ascontiguousarray(rgb)).save(tmp_path / "plain" / f"{name}.png")
    for name, size in {"1x1": (1, 1), "1x5000": (1, 5000), "5000x2": (5000, 2)}.items():
        Image.new("RGB", size, (200, 60, 40)).save(tmp_path / "odd" / f"{name}.png")
        Image.new("RGB", (32, 32), (200, 60, 40)).save(tmp_path / "plain" / f"{name}.png.png")
    out = tmp_path / "answers.csv"
    places = tmp_path / "odd", tmp_path / "plain"
    script(scripts.INFERENCE, ["predict", *places, *model_flags, "--out", out]).checked()
    rows = rows_of(out)
    odd = sorted(path.name for path in (tmp_path / "odd").iterdir())
    assert len(rows) == 2 * len(odd) == 22
    shown = script(
        scripts.INFERENCE, [*(tmp_path / "odd" / name for name in odd), *model_flags, "--json"]
    )
    alone = [json.loads(line) for line in shown.out.splitlines()]
    for name, answer in zip(odd, alone, strict=True):
        row, plain = rows[name], rows[f"{name}.png"]
        assert row["status"] in ("ok", "no_specialist"), row
        for column, cell in row.items():
            if column.endswith("_prob") and cell:
                assert float(cell) == pytest.approx(float(plain[column]), abs=2e-6), (name, column)
            elif column != "image":
                assert cell == plain[column], (name, column)
        assert answer["species"]["label"] == row["species_pred"]
        assert answer["species"]["topk"][0][1] == pytest.approx(
            float(row["species_prob"]), abs=1e-5
        )


# ---- Labels that spreadsheets run, pages execute and naive readers split ----

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
    first = odd.images / naive.photos(odd.images)[0]
    first.rename(first.with_name(os.fsdecode(b"caf\xe9.png")))
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
    (odd,) = [name for name in rows["image"] if "caf" in name]
    assert rows["image"].tolist() == sorted([*naive.photos(tree.images)[1:], odd])
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


# ---- JSON that is none, or holds other kinds ----

WHOLE = [
    b"", b"{", b"[]", b'"x"', b"null", b"NaN", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"),
]  # fmt: skip
INSIDE = [[], {}, "x", None, -1, float("nan"), 10**400, [[1]], {"a": {"b": {}}}]


@pytest.mark.parametrize(
    ("reader", "stride"),  # two pages take their time
    [("show", 1), ("cards", 5), ("models", 1), ("table", 1), ("split", 1)],
)
def test_odd_json_is_refused_with_its_file_or_does_no_harm(
    tree, evaluation_run, tmp_path, monkeypatch, reader, stride
):
    folder, split = tmp_path / "evaluation", tmp_path / "splits.json"
    shutil.copytree(evaluation_run.folder, folder)
    summary, models = (folder / f"petface_eval_{name}.json" for name in ("summary", "models"))
    table = tmp_path / "a.csv.identity.json"
    table.write_text('{"model": {"x": 1}, "data": [1]}')
    for name in ("splits.csv", "splits.json"):
        shutil.copy(tree.root / name, tmp_path)

    def stop(_):
        raise UserError(f"{summary} was shown")

    monkeypatch.setattr(show_evaluation, "read_test_rows", stop)  # the picture takes its time

    def run(tool, flag):
        monkeypatch.setattr(sys, "argv", ["tool", flag, str(folder)])
        tool.main()

    def take_up():
        with ResumableTable(tmp_path / "a.csv", ("a",), {"model": {"x": 1}}):
            pass

    path, work = {
        "show": (summary, lambda: run(show_evaluation, "--out-dir")),
        "cards": (summary, lambda: run(cards, "--evaluation")),
        "models": (models, lambda: read_evaluation(folder)),
        "table": (table, take_up),
        "split": (split, lambda: read_side_file(tmp_path / "splits.csv")),
    }[reader]
    good = json.loads(path.read_text())
    changed = [{**good, key: value} for key in good for value in INSIDE]
    changed += [{k: v for k, v in good.items() if k != key} for key in good]
    contents = [*WHOLE, *(json.dumps(one).encode() for one in changed[::stride])]
    for number, content in enumerate(contents):
        path.write_bytes(content)
        try:
            work()
            assert number >= len(WHOLE), content[:50]
        except UserError as error:
            names = (path.name, path.name.partition(".identity")[0], path.parent.name)
            assert any(name in str(error) for name in names), content[:50]
