"""The lines of the per-image table against rows built cell by cell."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from petface.data.dataset import load_dataset
from petface.data.fingerprint import record_hashes
from petface.data.splits import SPLITS
from petface.evaluation.details import HEADS, PER_IMAGE_COLUMNS, empty_details
from petface.evaluation.rows import OK, STATUSES, Predicted, SpeciesRows, mark_contaminated
from petface.evaluation.run import plan_slices
from petface.files import csv_line, safe_cell
from petface.inference.loading import Stage

CSV = """Name,Breed,Color1,Gender
000000,"=SUM(A1), or so",White,Female
000001,"-dash ""quoted"" é",,Male
000002,Manx,'tick,
000003,NA,White,Female
"""
FILES = ("a.png", "=b, c.png", "é.png", "new\nline.png", 'quo"te.png', "ok (1)-2.png")


@pytest.fixture
def dataset(tmp_path):
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


def cell_by_cell(dataset, names, part, status, details, reasons):
    """The rows one cell at a time, from the meaning of each column."""
    catalog, (images, labels) = dataset.catalog, dataset.image_labels("cat")
    lines = []
    for place, index in enumerate(part.tolist()):
        record = catalog.record_index[index]
        path = catalog.relative_path(index).decode("utf-8", "surrogateescape")
        cells = [path, "cat", catalog.record_names[record], SPLITS[dataset.record_split[record]]]
        cells.append(STATUSES[status[place]])
        unknown = []
        for head in HEADS:
            true, pred, probability, correct = "", "", "", ""
            if head == "species":
                true = "cat"
            elif head in labels and (k := labels[head][index - images[0]]) >= 0:
                true = dataset.annotations["cat"].vocabularies[head][k]
            unknown += [head] * (head in names and true not in ("", *names[head]))
            k = details[head]["top"][place, 0]
            if head in names and k >= 0:
                pred, probability = names[head][k], f"{details[head]['top_prob'][place, 0]:.6f}"
                correct = str(int(pred == true)) if true else ""
            cells += [pred, probability, correct] if head == "species" else [
                true, pred, probability, correct
            ]  # fmt: skip
        # these networks do not say what they learnt from
        cells += ["0" if SPLITS[dataset.record_split[record]] == "train" else "", " ".join(unknown)]
        cells.append(reasons.get(index, ""))
        lines.append(csv_line([safe_cell(cell) for cell in cells]))
    return "".join(lines)


@pytest.mark.parametrize("heads", [(), ("breed", "gender"), ("breed", "color2", "gender")])
def test_lines_equal_rows_built_cell_by_cell(dataset, heads, tmp_path):
    names = {"species": ("dog, odd", "cat")} | dict.fromkeys(
        heads, ("Manx", "NA", "=SUM(A1), or so", "Female", "Male")
    )
    draw = np.random.default_rng(0)
    (part,) = plan_slices(dataset.catalog.class_index, 99)
    details = empty_details(len(part))
    for head in HEADS:
        if head in names:
            details[head]["top"][:, 0] = draw.integers(-1, len(names[head]), len(part))
            p = np.where(details[head]["top"][:, 0] < 0, np.nan, draw.random(len(part)))
            details[head]["top_prob"][:, 0] = p
    status = draw.integers(0, len(STATUSES), len(part))
    stage1, specialist = (
        Stage(tmp_path, None, None, {head: names[head] for head in own}, {}, {})
        for own in (["species"], heads)
    )
    lines = SpeciesRows(dataset, "cat", stage1, specialist if heads else None)
    for cut in (part, part[:1], part[3:9], part[-1:]):
        which = cut - part[0]
        why = {int(cut[0]): "=cut short"}
        failures = [(i, f"{dataset.catalog.path(i)}: {text}") for i, text in why.items()]
        predicted = Predicted(cut, status[which], np.empty(0), np.empty(0), (), failures)
        found = lines.lay_out(predicted, details[which])
        assert found == cell_by_cell(dataset, names, cut, status[which], details[which], why)
        rows = list(csv.reader(io.StringIO(found)))
        assert {len(row) for row in rows} == {len(PER_IMAGE_COLUMNS)} and len(rows) == len(cut)


def test_a_head_of_one_class_is_an_answer_where_it_is_a_number(dataset, tmp_path):
    network = SimpleNamespace(temperatures=())
    stage1, specialist = (
        Stage(tmp_path, None, network, {head: (label,)}, {}, {})
        for head, label in (("species", "cat"), ("gender", "Male"))
    )
    (part,) = plan_slices(dataset.catalog.class_index, 99)
    one = np.ones((len(part), 1), np.float32)
    gender = np.where(np.arange(len(part)) == 2, np.nan, one.T).T
    status, right = np.full(len(part), OK, np.uint8), np.ones(len(part), bool)
    lines = SpeciesRows(dataset, "cat", stage1, specialist)
    text, _ = lines.build(lambda: Predicted(part, status, one, right, (gender,)))
    found = [row[4] for row in csv.reader(io.StringIO(text))]
    assert found == ["ok", "ok", "non_finite", *["ok"] * (len(part) - 3)]


def test_records_that_a_network_knows_as_another_part_are_marked():
    """A test record also where it chose the network, a validation record only if learnt from."""
    names, parts = list("abcdefgh"), ["test", "test", "test", "test", "val", "val", "val", "train"]
    split = np.array([SPLITS.index(part) for part in parts])
    hashes = torch.from_numpy(record_hashes(["cat"] * 8, names).copy())
    records = {"train": hashes[[0, 4, 7]], "val": hashes[[1, 5]], "test": hashes[[2]]}
    data = {"records": records, "inherited": hashes[[3, 6]], "unknown": []}
    for learnt, not_seen in (([data], "0"), ([data, None], ""), ([data | {"unknown": ["x"]}], "")):
        found = mark_contaminated(learnt, "cat", np.array(names), split)
        assert found.tolist() == ["1", "1", not_seen, "1", "1", not_seen, "1", "0"]
