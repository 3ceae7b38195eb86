"""Every part of `make torture` as small as can be, and that each notices what it is there for."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from petface import files
from petface.data.annotations import SpeciesAnnotations, read_species
from petface.data.pack import PackedImages
from petface.errors import UserError
from petface.models import checkpoints
from petface.settings import read_settings
from tests import scripts
from tests.sameness import broken_files, num_being_written, run_differences, stale_files
from tests.torture import __main__ as torture
from tests.torture import pickles, programs, soak
from tests.torture.annotations import torture_csv
from tests.torture.bundles import torture_bundles
from tests.torture.checkpoints import torture_checkpoints
from tests.torture.fixtures import Workshop
from tests.torture.fuzz import fuzz, judge_reading
from tests.torture.images import torture_images
from tests.torture.outcome import Outcome, table
from tests.torture.packs import torture_packs, torture_sealed_packs
from tests.torture.server import torture_load
from tests.torture.tables import torture_settings, torture_splits


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("torture"), 60, 32, 1, ("cat",))


def fine(outcome: Outcome) -> Outcome:
    assert outcome.failures == [], table([outcome])
    assert "ok" in table([outcome])
    return outcome


def noticed(outcome: Outcome, *words: str) -> None:
    assert outcome.failures and "FAILED" in outcome.line()
    for word in words:
        assert any(word in text for text in outcome.failures), outcome.failures


# images


def test_mutated_images_are_decoded_or_refused():
    counts = fine(torture_images(120, 3)).counts
    assert counts["decoded"] > 20 and counts["refused"] > 20
    assert counts["decoded"] + counts["refused"] == 120
    assert counts["peak_mb"] < 1000


@pytest.mark.parametrize(
    ("planted", "word"),
    [("hang", "hang"), ("crash", "crash"), ("swallow", "no picture"), ("hoard", "1000 MB")],
)
def test_a_bad_decoder_is_noticed(planted, word):
    outcome = torture_images(2, 0, f"tests.torture.images:{planted}", 0.3)
    noticed(outcome, word)
    assert len(outcome.failures) == 2


# annotation files


def test_mutated_annotations_are_read_or_refused(tmp_path):
    counts = fine(torture_csv(150, 3, tmp_path)).counts
    assert counts["read"] > 30 and counts["refused"] > 30


def test_a_reader_that_shifts_cells_is_noticed(tmp_path):
    def lenient(path: Path, species: str) -> SpeciesAnnotations:
        """Fill short rows with nothing and cut long ones, as many readers do."""
        lines = path.read_bytes().decode("utf-8", "replace").replace("\0", "").splitlines()
        width = lines[0].count(",") if lines else 0
        rows = [",".join((line.split(",") + [""] * width)[: width + 1]) for line in lines]
        mended = path.with_name("mended.csv")
        mended.write_text("\n".join(rows) + "\n")
        try:
            return read_species(mended, species)
        except UserError as error:
            raise UserError(str(error).replace(str(mended), str(path))) from error

    outcome = torture_csv(100, 0, tmp_path, lenient)
    noticed(outcome, "read, but a row is longer or shorter than the header")
    assert outcome.counts["altered"] > 3


# checkpoints and packs


def test_damaged_checkpoints_are_refused_or_identical(tmp_path):
    counts = fine(torture_checkpoints(120, 3, tmp_path)).counts
    assert counts["refused"] > 60 and counts["executed"] == counts["altered"] == 0


def test_a_loader_that_trusts_its_files_is_noticed(tmp_path):
    def trusting(path: Path) -> Any:
        try:
            return torch.load(path, weights_only=False)
        except Exception as error:
            raise checkpoints.CheckpointError(path, "damaged") from error

    noticed(torture_checkpoints(60, 0, tmp_path, trusting), "weight differs")


@pytest.mark.slow
def test_hostile_pickles_are_refused(tmp_path):
    assert fine(pickles.torture_pickles(80, 3, tmp_path)).counts["refused"] == 80


def test_a_pickle_that_is_executed_and_a_file_that_is_changed_are_noticed(tmp_path, monkeypatch):
    def trusting(path: Path) -> None:
        try:
            pickle.loads(path.read_bytes())
        except Exception as error:
            raise UserError(f"{path}: no") from error

    monkeypatch.setattr(pickles, "read_as_both", trusting)
    fuzzer = pickles.pickle_fuzzer(str(tmp_path))
    noticed(fuzz(Outcome("pickles", "read"), fuzzer, 40, 3), "what it holds was executed")
    judged = judge_reading(tmp_path / "a", b"1", lambda path: path.write_text("2"), str)
    assert judged == ("altered", "what was read is not what it was")
    files = {"a/b.txt": b"1", "c": None, "d": "nowhere", "e/": b""}
    assert judge_reading(tmp_path / "folder", files, lambda _: None, str) == ("read", "")


def test_damaged_packs_are_refused_or_identical(tmp_path):
    assert fine(torture_packs(90, 3, tmp_path)).counts["refused"] > 80


@pytest.mark.parametrize(
    ("torture", "num_files"),
    [(torture_sealed_packs, 120), (torture_settings, 33), (torture_splits, 48)],
)
def test_what_is_odd_but_sealed_is_refused_or_read(tmp_path, torture, num_files):
    counts = fine(torture(num_files, 3, tmp_path)).counts
    assert counts["refused"] > num_files / 2 and counts["read"]


@pytest.mark.slow
def test_strangers_bundles_are_refused_or_read(tmp_path):
    counts = fine(torture_bundles(36, 3, tmp_path)).counts
    assert counts["refused"] > 30 and counts["read"]


def test_a_pack_that_is_read_without_its_checksums_is_noticed(tmp_path):
    def trusting(*arguments: Any) -> PackedImages:
        pack = PackedImages(*arguments)
        pack._is_checked[:] = True
        return pack

    noticed(torture_packs(90, 0, tmp_path, trusting), "other pixels")


# what is compared


def made_run(folder: Path, seconds: float) -> Path:
    weights = {"model": {"w": torch.ones(3)}, "seconds": seconds}
    checkpoints.save(folder / "best.pt", weights)
    files.write_csv(folder / "metrics.csv", ("epoch", "train_s"), [(1, seconds)])
    files.write_json(folder / "final.json", {"train_minutes": seconds, "checkpoint": str(folder)})
    (folder / "errors.csv").write_text("species,message\n")
    return folder


def test_durations_and_names_do_not_count_but_every_bit_does(tmp_path):
    run, other = made_run(tmp_path / "straight", 1.0), made_run(tmp_path / "other", 9.0)
    assert run_differences(run, other) == [] and stale_files(run, other) == []
    w = torch.tensor([1.0, 1.0, 1.0 + 2**-23])
    checkpoints.save(other / "best.pt", {"model": {"w": w}, "seconds": 2.0})
    assert run_differences(run, other) == ["best.pt .model.w"]
    files.write_csv(other / "metrics.csv", ("epoch", "train_s"), [(2, 3.0)])
    (other / "errors.csv").unlink()
    (other / "best.pt.partial-write").write_bytes(b"")
    found = run_differences(run, other)
    assert "errors.csv is missing" in found and "metrics.csv [0].epoch" in found
    assert stale_files(run, other) == ["best.pt.partial-write"]
    assert num_being_written([other]) == 1


def test_files_that_are_not_whole_are_noticed(tmp_path):
    run = made_run(tmp_path, 1.0)
    assert broken_files(run) == []
    for name in ("best.pt", "metrics.csv", "final.json"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-3])
        assert [text.split()[0] for text in broken_files(run)] == [name]
        path.unlink()


# the real programs


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pack", "stage1", "stage2", "evaluate"])
def test_kills_lose_nothing(workshop, program):
    assert fine(programs.torture_kills(workshop, program, 2, 0)).counts["kills"] == 2


def test_a_full_disk_at_every_write_of_a_pack(workshop):
    assert fine(programs.torture_disk(workshop, "pack")).counts["starts"] > 2


def test_a_bad_end_on_a_full_disk_is_noticed(tmp_path):
    (tmp_path / "final.json").write_text('{"half":')
    (tmp_path / "best.pt.partial-write").write_bytes(b"")
    (tmp_path / "table.csv.unfinished").write_text("a,b\n1,")
    good = f"error: cannot write {tmp_path}/a.csv: No space left on device (0 bytes free)\n"
    path, wrong = programs.judge_full_disk(scripts.Result(1, "", good), tmp_path)
    assert path == f"{tmp_path}/a.csv"
    assert [text.split()[0] for text in wrong] == [
        "final.json", "best.pt.partial-write", "table.csv.unfinished",
    ]  # fmt: skip
    traced = scripts.Result(1, "", "Traceback (most recent call last):\nOSError: [Errno 28]\n")
    wrong = programs.judge_full_disk(traced, tmp_path)[1]
    assert [text.partition(":")[0] for text in wrong] == [
        "no clear end", "the free bytes are not named", "the file is not named",
    ]  # fmt: skip


def test_a_second_process_is_refused(workshop):
    assert fine(programs.torture_two_processes(workshop, "pack")).counts["refused"] == 1


@pytest.mark.slow
def test_a_resumed_training_is_the_straight_one_and_one_that_differs_is_noticed(
    workshop, monkeypatch
):
    asked = []

    def compare(straight: Path, other: Path) -> list[str]:
        asked.append(run_differences(straight, other))
        last = other / "cat/cat_last.pt"
        content = checkpoints.load(last)
        next(iter(content["model"].values()))[0, 0, 0, 0] += 1e-3
        checkpoints.save(last, content)
        return run_differences(straight, other)

    monkeypatch.setattr(programs, "PACKS", ((),))
    monkeypatch.setattr(programs, "run_differences", compare)
    outcome = programs.torture_resume(workshop, "stage2 x 1", 1, 0)
    assert asked == [[]] and outcome.counts["stops"] == 1
    noticed(outcome, "cat_last.pt .model.")
    assert len(outcome.failures) == 1


# memory over time


def samples(grow_bytes: float = 0, grow_handles: float = 0) -> list[soak.Sample]:
    draw = random.Random(0)
    return [
        soak.Sample(
            float(n), int(5e8 + n * grow_bytes + draw.gauss(0, 2e6)), int(20 + n * grow_handles)
        )
        for n in range(200)
    ]


def test_flat_is_flat_and_growth_is_noticed():
    counts, failures = soak.judge(samples())
    assert failures == [] and counts["handles"] == "20 -> 20" and abs(counts["mb_per_hour"]) < 300
    assert "memory grew" in soak.judge(samples(grow_bytes=3e5))[1][0]
    assert "open handles grew from" in soak.judge(samples(grow_handles=0.05))[1][0]
    assert "only 3 samples" in soak.judge(samples()[:3])[1][0]


@pytest.mark.slow
def test_an_evaluation_and_a_server_are_watched(workshop, monkeypatch):
    pytest.importorskip("fastapi", reason='python -m pip install ".[serve]"')
    monkeypatch.setattr(soak, "NUM_SAMPLES", 16)
    monkeypatch.setattr(soak, "MAX_GROWTH_BYTES", 500_000_000)  # two seconds are all warming up
    evaluation, server = (fine(outcome) for outcome in soak.torture_soak(workshop, 2.0))
    assert evaluation.counts["evaluations"] >= 1 and server.counts["photos"] > 1


@pytest.mark.slow
def test_a_server_is_loaded_and_flooded_and_what_grows_is_noticed(workshop, monkeypatch):
    monkeypatch.setattr("tests.torture.server.MOST", {"mb": 0.5})
    before, floods, after = torture_load(workshop, 4.0)
    assert before.counts["load"]["codes"]["200"] > 9 and floods.counts["bad chunks"]["codes"]["400"]
    noticed(after, "mb: ")


# the command


def test_the_command_prints_a_table_and_tells_a_failure_by_its_code(monkeypatch, capsys):
    flags = ["--only", "images", "csv", "--num-images", "5", "--num-csv", "5"]
    monkeypatch.setattr(sys, "argv", ["torture", *flags])
    assert torture.main() == 0
    printed = capsys.readouterr().out
    assert "rows: 2\nfailed: 0" in printed and "mutated annotations" in printed
    asked = read_settings(torture, ["--programs", "stage1", "pack"])
    each = torture._each(asked, (*programs.STOPPED, *programs.RIVALS), str.upper)
    assert list(each) == ["STAGE1 X 1", "STAGE1 X 2", "STAGE1", "PACK"]

    def broken(*_: Any) -> Any:
        raise RuntimeError("the tool itself")

    monkeypatch.setitem(torture.PARTS, "csv", broken)
    assert torture.main() == 1
    assert "csv, the part itself: RuntimeError: the tool itself" in capsys.readouterr().out
