"""An evaluation knows what its networks have seen, which classes they lack, and its own photos."""

import json
import os
import shutil
from functools import partial

import pytest
import torch

from petface.data.dataset import load_dataset
from petface.models import checkpoints
from petface.report.cards import write_cards
from tests import scripts
from tests.naive import rows_of
from tests.sameness import assert_same
from tests.scripts import assert_refused

SUMMARY, TABLE = "petface_eval_summary.json", "petface_eval_per_image.csv"
PEOPLE = {"owner": "", "licence": "", "contact": ""}


@pytest.fixture
def evaluate(script, model_flags, tmp_path):
    """Evaluate a tree with the tiny networks into `tmp_path/out`."""
    flags = [*model_flags, "--batch-size", 8, "--num-workers", 0]

    def run(tree, *more, hook=None):
        arguments = ["evaluate", *tree.flags, *flags, "--out-dir", tmp_path / "out", *more]
        return script(scripts.INFERENCE, arguments, hook)

    return run


def new_split(tree, seed=5):
    for path in tree.root.glob("splits.*"):
        path.unlink()
    return load_dataset(tree.images, tree.annotations, seed=seed)


def test_records_that_were_learnt_from_are_marked_everywhere(evaluate, tree, tmp_path):
    own = tree.copy(tmp_path / "PetFace")
    before, after = load_dataset(tree.images, tree.annotations), new_split(own)
    num, total = int(((after.record_split == 2) & (before.record_split < 2)).sum()), 8
    assert int((after.record_split == 2).sum()) == total and num
    done = evaluate(own)
    assert done.code == 0 and f"contaminated: {num} of {total} records" in done.out, done
    rows = rows_of(tmp_path / "out" / TABLE)
    marked = {(r["species"], r["record"]) for r in rows if r["contaminated"] == "1"}
    names = set(zip(after.catalog.record_class.tolist(), after.catalog.record_names, strict=True))
    assert len(names) == after.catalog.num_records and len(marked) >= num
    assert all(row["contaminated"] == "0" for row in rows if row["split"] == "train")
    columns = list(rows[0])
    assert columns.index("contaminated") > columns.index("gender_correct")
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert summary["contamination"]["contaminated"] == f"{num} of {total} records"
    page = (tmp_path / "out/report.html").read_text()
    model_card = write_cards(tmp_path / "out", people=PEOPLE)[0].read_text()
    for text in (page, model_card):
        assert f"contaminated: {num} of {total} records" in text
        assert "no network was trained or chosen on" not in text and "held out" not in text


def test_the_own_split_is_clean_and_networks_that_do_not_say_are_said(
    evaluate, evaluation_run, stage1_run, tree, tmp_path
):
    text, page = evaluation_run.result.out, (evaluation_run.folder / "report.html").read_text()
    assert "contaminated" not in text and "not known" not in text
    assert "no network was trained or chosen on" in page
    content = checkpoints.load(stage1_run.folder / "best.pt")
    torch.save({k: v for k, v in content.items() if k != "data"}, tmp_path / "old.pt")
    done = evaluate(tree, "--stage1-checkpoint", tmp_path / "old.pt")
    assert done.code == 0 and "not known whether the networks have seen 8 records" in done.out
    assert "no network was trained" not in (tmp_path / "out/report.html").read_text()


def test_classes_that_differ_are_listed_marked_and_counted_apart(evaluate, tree, tmp_path):
    own = tree.copy(tmp_path / "PetFace")
    (own.images / "cat").rename(own.images / "Cat")
    shutil.copytree(own.images / "dog", own.images / "okapi")
    text = (own.annotations / "dog.csv").read_text().replace("P. t. verus", "Xolo")
    (own.annotations / "dog.csv").write_text(text)
    new_split(own)
    done = evaluate(own)
    assert done.code == 0, done
    for words in (
        "species: not in the network: 'Cat' (nearest: 'cat'), 'okapi'",
        "species: not in the data: 'cat' (nearest: 'Cat')",
        "dog breed: not in the network: 'Xolo'",
        "accuracy without them",
    ):
        assert words in done.out, words
    for row in rows_of(tmp_path / "out" / TABLE):
        known = row["species"] not in ("Cat", "okapi")
        assert ("species" not in row["unknown_class"].split()) == known
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    species = summary["figures"]["all"]["species"]
    assert species["num_not_a_class"] == species["num"] - species["known_classes"]["num"] > 0
    assert species["known_classes"]["accuracy"] > species["accuracy"]


def test_what_replaces_a_finished_evaluation_is_not_taken_for_it_and_knows_its_photos(
    evaluate, evaluation_run, tree, tmp_path
):
    run, out = partial(evaluate, tree), tmp_path / "out"
    unfinished, photo = out / f"{TABLE}.unfinished", tree.images / "yak/000000/00.png"
    shutil.copytree(evaluation_run.folder, out)
    assert run("--force", hook=scripts.KillWhileWritingRows(3, 1.0)).code == -9
    assert not {SUMMARY, TABLE, "report.html"} & {path.name for path in out.iterdir()}
    before, times = unfinished.read_bytes(), photo.stat()
    os.utime(photo, ns=(5, 5))
    done = run()
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert_refused(done, "begun with other checkpoints, data or settings (photos)")
    assert unfinished.read_bytes() == before
    hook = scripts.kill_before_call("petface.files", "write_csv")
    assert run("--force", hook=hook).code == -9  # goes on with its own rows
    assert not (out / TABLE).exists() and unfinished.read_bytes().startswith(before)
    run().checked()
    assert_same(evaluation_run.folder, out)
