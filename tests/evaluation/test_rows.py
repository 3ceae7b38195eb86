"""The columns' lines against rows built cell by cell; the writing thread against stops."""

from __future__ import annotations

import csv
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petface.data.dataset import load_dataset
from petface.data.splits import SPLITS
from petface.evaluation.details import DETAILS, HEADS, PER_IMAGE_COLUMNS, empty_details
from petface.evaluation.rows import STATUSES, SpeciesLines, probability_cells, text_cell
from petface.evaluation.run import plan_slices
from petface.files import csv_line, safe_cell
from petface.resumable import write_behind
from petface.taxonomy import FEATURES

CSV = """Name,Breed,Color1,Gender
000000,"=SUM(A1), or so",White,Female
000001,"-dash ""quoted"" é",,Male
000002,Manx,'tick,
000003,NA,White,Female
"""
FILES = ("a.png", "=b, c.png", "é.png", "new\nline.png", 'quo"te.png', "ok (1)-2.png")


@pytest.fixture
def dataset(tmp_path: Path):
    for record in range(5):  # the last has no row
        folder = tmp_path / "images" / "cat" / f"{record:06d}"
        folder.mkdir(parents=True)
        for name in FILES[: 1 + record] if record else FILES:
            Image.new("RGB", (3, 3)).save(folder / name, "PNG")
    odd = tmp_path / "images" / "cat" / "000004" / "plain.png"
    odd.write_bytes(b"x")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "cat.csv").write_text(CSV, encoding="utf-8")
    return load_dataset(tmp_path / "images", tmp_path / "annotations")


def cell_by_cell(dataset, names, part, status, details) -> str:
    """The rows one cell at a time, from the meaning of each column."""
    catalog, (images, labels) = dataset.catalog, dataset.image_labels("cat")
    lines = []
    for place, index in enumerate(part.tolist()):
        record = catalog.record_index[index]
        path = catalog.relative_path(index).decode("utf-8", "surrogateescape")
        cells = [path, "cat", catalog.record_names[record], SPLITS[dataset.record_split[record]]]
        cells.append(STATUSES[status[place]])
        for head in HEADS:
            true, pred, probability, correct = "", "", "", ""
            if head == "species":
                true = "cat"
            elif head in labels and (k := labels[head][index - images[0]]) >= 0:
                true = dataset.annotations["cat"].vocabularies[head][k]
            k = details[head]["top"][place, 0]
            if head in names and k >= 0:
                pred, probability = names[head][k], f"{details[head]['top_prob'][place, 0]:.6f}"
                correct = str(int(pred == true)) if true else ""
            cells += [pred, probability, correct] if head == "species" else [
                true, pred, probability, correct
            ]  # fmt: skip
        lines.append(csv_line([safe_cell(cell) for cell in cells]))
    return "".join(lines)


@pytest.mark.parametrize("heads", [(), ("breed", "gender"), ("breed", "color2", "gender")])
def test_lines_equal_rows_built_cell_by_cell(dataset, heads) -> None:
    names = {"species": ("dog, odd", "cat")} | dict.fromkeys(
        heads, ("Manx", "NA", "=SUM(A1), or so", "Female", "Male")
    )
    draw = np.random.default_rng(0)
    (part,) = plan_slices(dataset.catalog.class_index, 99)
    details = np.empty(len(part), DETAILS)
    for head in HEADS:
        details[head] = empty_details(len(part))
        if head in names:
            details[head]["top"][:, 0] = draw.integers(-1, len(names[head]), len(part))
            p = np.where(details[head]["top"][:, 0] < 0, np.nan, draw.random(len(part)))
            details[head]["top_prob"][:, 0] = p
    status = draw.integers(0, len(STATUSES), len(part))
    lines = SpeciesLines(dataset, "cat", names)
    for cut in (part, part[:1], part[3:9], part[-1:]):
        which = cut - part[0]
        found = lines.lay_out(cut, status[which], details[which])
        assert found == cell_by_cell(dataset, names, cut, status[which], details[which])
        rows = list(csv.reader(io.StringIO(found)))
        assert {len(row) for row in rows} == {len(PER_IMAGE_COLUMNS)} and len(rows) == len(cut)
    assert all(len(dataset.image_labels("cat")[1]) for _ in FEATURES), "labels are in play"


def test_probabilities_are_formatted_as_python_does() -> None:
    draw = np.random.default_rng(1)
    p = np.concatenate([draw.random(50_000), draw.random(5_000) * 1e-6, draw.random(5_000) * 2e-3])
    ties = (np.arange(0, 2**20, 7) + 0.5) / 2**20  # exact halves in binary
    p = np.concatenate([p, ties, [0, 1, 5e-7, 1.5e-6, 0.9999995, 0.0000005]]).astype(np.float32)
    assert probability_cells(p, np.ones(len(p), bool)) == [f"{x:.6f}" for x in p.tolist()]
    assert probability_cells(np.array([np.nan, 0.5], np.float32), np.array([False, True])) == [
        "", "0.500000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "cat", "a b", "=1", "'x", "-", "a,b", 'a"b', "a\nb", "a\rb", " a", "é", "1\n"]
)
def test_a_cell_is_that_of_the_csv_writer(text: str) -> None:
    assert f"x,{text_cell(text)},y\n" == csv_line(["x", safe_cell(text), "y"])


def test_slices_hold_one_class_each_and_every_image_once() -> None:
    classes = np.repeat([0, 1, 3], [5, 1, 7])
    plan = plan_slices(classes, 3)
    assert np.concatenate(plan).tolist() == list(range(13))
    assert [len(part) for part in plan] == [3, 2, 1, 3, 2, 2]
    assert all(len(set(classes[part].tolist())) == 1 for part in plan)
    assert plan_slices(classes[:0], 3) == []


def test_everything_is_written_in_order_by_another_thread() -> None:
    written: list[tuple[int, bool]] = []
    write_behind(
        range(50), lambda n: written.append((n, threading.current_thread() is not main)), waiting=3
    )
    assert written == [(n, True) for n in range(50)]


main = threading.main_thread()


def test_what_the_writer_raises_surfaces_and_nothing_is_written_after_it() -> None:
    written, made = [], []

    def make():
        for n in range(10_000):
            made.append(n)
            yield n

    def write(n: int) -> None:
        if n == 5:
            raise OSError("disk full")
        written.append(n)

    with pytest.raises(OSError, match="disk full"):
        write_behind(make(), write, waiting=2)
    assert written == [0, 1, 2, 3, 4] and len(made) < 10_000
    assert not [t for t in threading.enumerate() if t.name == "write rows"]


def test_where_the_maker_raises_what_came_before_is_written() -> None:
    written = []

    def make():
        yield from range(3)
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_behind(make(), lambda n: (time.sleep(0.01), written.append(n)))
    assert written == [0, 1, 2]


def test_no_more_than_a_few_items_wait() -> None:
    most, made, written = [0], [0], [0]

    def make():
        for n in range(30):
            made[0] += 1
            most[0] = max(most[0], made[0] - written[0])
            yield n

    def write(_: int) -> None:
        time.sleep(0.002)
        written[0] += 1

    write_behind(make(), write, waiting=2)
    assert written[0] == 30 and most[0] <= 2 + 2  # one being written, one just made
