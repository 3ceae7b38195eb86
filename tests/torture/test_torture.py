"""Every part of `make torture` as small as can be, and that each notices what it is there for."""

from __future__ import annotations

import pickle
import pkgutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.torture import annotations, packs, pickles, programs, server
from tests.torture.checkpoints import damaged_fuzzer
from tests.torture.fixtures import Workshop
from tests.torture.fuzz import Fuzzer, Outcome, fuzz, fuzz_apart, judge_reading, table


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("torture"), 60, 32, 1, ("cat",))


def fine(outcome: Outcome) -> Outcome:
    assert outcome.failures == [], table([outcome])
    assert "ok" in table([outcome])
    return outcome


def noticed(outcome: Outcome, *words: str) -> None:
    assert outcome.failures and "FAILED" in table([outcome])
    for word in words:
        assert any(word in text for text in outcome.failures), outcome.failures


# files


@pytest.mark.parametrize(
    ("part", "what", "num_files", "word"),
    [
        ("images", "mutated images", 120, "decoded"),
        ("csv", "mutated annotations", 150, "read"),
        ("checkpoints", "damaged checkpoints", 120, ""),
        ("packs", "damaged packs", 90, ""),
        ("packs", "sealed packs", 120, "read"),
        ("settings", "mutated presets", 36, "read"),
        ("splits", "mutated splits", 48, "read"),
        pytest.param("pickles", "hostile pickles", 80, "", marks=pytest.mark.slow),
        pytest.param("bundles", "strangers' bundles", 90, "read", marks=pytest.mark.slow),
    ],
)
def test_mutated_files_are_read_or_refused(tmp_path, part, what, num_files, word):
    fuzzer, outcome = f"tests.torture.{torture.FUZZERS[part][what]}", Outcome(part, what)
    if part in ("csv", "checkpoints", "packs"):  # a process of its own takes longer to start
        counts = fine(fuzz(outcome, pkgutil.resolve_name(fuzzer)(tmp_path), num_files, 3)).counts
    else:
        counts = fine(fuzz_apart(outcome, fuzzer, tmp_path, num_files, 3)).counts
    assert counts["refused"] > num_files / 6 and (counts[word] or not word)
    assert counts["refused"] + counts["read"] + counts["decoded"] == num_files
    assert counts["executed"] == counts["altered"] == 0 < counts["ceiling_mb"] < 1000


@pytest.mark.parametrize(
    ("planted", "word"),
    [("hang", "hang"), ("crash", "crash"), ("swallow", "no picture"), ("hoard", "1000 MB")],
)
def test_a_bad_decoder_is_noticed(tmp_path, planted, word):
    fuzzer = f"tests.torture.images:{planted}"
    outcome = fuzz_apart(Outcome("images", planted), fuzzer, tmp_path, 2, 0)
    noticed(outcome, word)
    assert len(outcome.failures) == 2


def with_lenient_reader(place: Path) -> Fuzzer:
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

    return annotations.csv_fuzzer(place, lenient)


def with_trusting_loader(place: Path) -> Fuzzer:
    def trusting(path: Path) -> Any:
        try:
            return torch.load(path, weights_only=False)
        except Exception as error:
            raise checkpoints.CheckpointError(path, "damaged") from error

    return damaged_fuzzer(place, trusting)


def without_checksums(place: Path) -> Fuzzer:
    def trusting(*arguments: Any) -> PackedImages:
        pack = PackedImages(*arguments)
        pack._is_checked[:] = True
        return pack

    return packs.damaged_fuzzer(place, trusting)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (with_lenient_reader, "read, but a row is longer or shorter than the header"),
        (with_trusting_loader, "weight differs"),
        (without_checksums, "other pixels"),
    ],
)
def test_a_reader_that_is_too_lenient_is_noticed(tmp_path, made, word):
    outcome = fuzz(Outcome("files", made.__name__), made(tmp_path), 90, 0)
    noticed(outcome, word)
    assert outcome.counts["altered"] > 2


def test_a_pickle_that_is_executed_and_a_file_that_is_changed_are_noticed(tmp_path, monkeypatch):
    def trusting(path: Path) -> None:
        try:
            pickle.loads(path.read_bytes())
        except Exception as error:
            raise UserError(f"{path}: no") from error

    monkeypatch.setattr(pickles, "read_as_both", trusting)
    fuzzer = pickles.pickle_fuzzer(tmp_path)
    noticed(fuzz(Outcome("pickles", "read"), fuzzer, 40, 3), "what it holds was executed")
    judged = judge_reading(tmp_path / "a", b"1", lambda path: path.write_text("2"))
    assert judged == ("altered", "what was read is not what it was")
    files = {"a/b.txt": b"1", "c": None, "d": "nowhere", "e": "/"}
    assert judge_reading(tmp_path / "folder", files, lambda _: None) == ("read", "")


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


def samples(grow_bytes: float = 0, grow_handles: float = 0) -> np.ndarray:
    n = np.arange(200)
    memory = 5e8 + n * grow_bytes + np.random.default_rng(0).normal(0, 2e6, 200)
    return np.stack([n, memory, (20 + n * grow_handles).astype(int)], axis=1)


def test_flat_is_flat_and_growth_is_noticed():
    counts, failures = server.judge(samples())
    assert failures == [] and counts["handles"] == "20 -> 20" and abs(counts["mb_per_hour"]) < 300
    assert "memory grew" in server.judge(samples(grow_bytes=3e5))[1][0]
    assert "open handles grew from" in server.judge(samples(grow_handles=0.05))[1][0]
    assert "only 3 samples" in server.judge(samples()[:3])[1][0]


@pytest.mark.slow
def test_an_evaluation_and_a_server_are_watched(workshop, monkeypatch):
    monkeypatch.setattr(server, "NUM_SAMPLES", 16)
    monkeypatch.setattr(server, "MAX_GROWTH_BYTES", 500_000_000)  # two seconds are all warming up
    evaluation, served = (fine(outcome) for outcome in server.torture_soak(workshop, 2.0))
    assert evaluation.counts["evaluations"] >= 1 and served.counts["photos"] > 1


@pytest.mark.slow
def test_a_server_is_loaded_and_flooded_and_what_grows_is_noticed(workshop, monkeypatch):
    monkeypatch.setattr(server, "MOST", {"mb": 0.5})
    before, floods, after = server.torture_load(workshop, 4.0)
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
