"""The run folder: held once, refused or resumed, explained; signals; failures; TensorBoard."""

import json
import math
import os
import signal
import subprocess
import sys

import pandas
import pytest
import torch

from petface.data.sources.petface import scan
from petface.errors import UserError
from petface.models import checkpoints
from petface.training import runs
from petface.training.runs import FailureLog, RunFolder, StopRequest, open_run, run_path
from tests import scripts

SETTINGS = 'LR = 0.5  # of AdamW\nSPECIES = "all"\nNUM_WORKERS = 0\n'
OTHER = SETTINGS.replace("0.5", "0.25")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "mine"


def test_a_run_name_stays_inside_the_runs():
    assert str(run_path("runs", "a/b")) == "runs/a/b"
    for name in ("", "..", "../x", "a/../../x", "/etc", "a\0b"):
        with pytest.raises(UserError, match="must be a plain name inside runs"):
            run_path("runs", name)


def test_a_new_run_explains_itself(folder):
    with open_run(folder, SETTINGS, prefix="cat_") as run:
        assert run.last == folder / "cat_last.pt" and run.best == folder / "cat_best.pt"
    assert (folder / "settings.toml").read_text() == SETTINGS
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["command"] == sys.argv and facts["python"].count(".") == 2


def test_a_held_folder_is_refused_by_who_holds_it_and_free_afterwards(folder):
    with open_run(folder, SETTINGS):
        with (
            pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "),
            open_run(folder, SETTINGS),
        ):
            pass
        with (  # not even with force, which would delete what the other one writes
            pytest.raises(UserError, match="is in use by"),
            open_run(folder, SETTINGS, force=True),
        ):
            pass
    with open_run(folder, SETTINGS):
        pass


def test_the_hold_ends_with_its_process_although_a_worker_of_it_lives_on(folder):
    """A killed run leaves its loader workers behind for some seconds; they must not hold on."""
    (here, there), (ready, tell) = os.pipe(), os.pipe()
    with open_run(folder, SETTINGS):
        worker = os.fork()
        if worker == 0:
            os.close(there)
            os.write(tell, b"!")
            os.read(here, 1)  # lives until the test closes its end
            os._exit(0)
        os.read(ready, 1)
    try:
        with open_run(folder, SETTINGS):
            pass
    finally:
        for descriptor in (here, there, ready, tell):
            os.close(descriptor)
        os.waitpid(worker, 0)


def finish(folder, settings, summary=None):
    with open_run(folder, settings) as run:
        torch.save({}, run.best)
        run.finish(summary or {"accuracy": 0.5}, {"details": [1]})


def contents(folder):
    """Every file but the lock, which says since when it is held."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_finished_run_is_refused_and_replaced_by_force_alone(folder):
    finish(folder, SETTINGS)
    before = contents(folder)
    with (
        pytest.raises(UserError, match="holds a finished run; choose another RUN_NAME, or --force"),
        open_run(folder, OTHER),
    ):
        pass
    assert contents(folder) == before
    (folder / "notes.md").write_text("mine")
    with open_run(folder, OTHER, force=True):
        assert not (folder / "best.pt").exists() and not (folder / "final.json").exists()
    assert (folder / "notes.md").read_text() == "mine"


def test_an_unfinished_run_resumes_with_its_own_settings_only(folder):
    with open_run(folder, SETTINGS) as run:
        run.save_last({})
    with (
        pytest.raises(UserError, match=r"other settings \(LR: 0.5 -> 0.25\).*settings.toml"),
        open_run(folder, OTHER),
    ):
        pass
    changed = SETTINGS.replace("all", "cat").replace("NUM_WORKERS = 0", "NUM_WORKERS = 3")
    with pytest.raises(UserError, match="NUM_WORKERS: 0 -> 3"), open_run(folder, changed):
        pass
    with open_run(folder, changed, may_change=("SPECIES", "NUM_WORKERS")) as run:
        assert run.last.exists()
    with open_run(folder, OTHER, force=True) as run:
        assert not run.last.exists()


def test_a_resumed_run_takes_as_many_images_a_step(folder):
    with open_run(folder, SETTINGS, global_batch_size=64) as run:
        run.save_last({"epoch": 1})
        assert checkpoints.load(run.last)["global_batch_size"] == 64
    with (
        pytest.raises(UserError, match="64 images a step; this would take 32"),
        open_run(folder, SETTINGS, global_batch_size=32),
    ):
        pass
    with open_run(folder, SETTINGS, global_batch_size=64):
        pass


def test_a_run_that_saved_nothing_yet_may_begin_with_other_settings(folder):
    for settings in (SETTINGS, OTHER):
        with open_run(folder, settings):
            pass
    assert (folder / "settings.toml").read_text() == OTHER


@pytest.mark.parametrize("content", [None, b"LR = ", b"\xff"])
def test_an_unfinished_run_without_its_settings_is_not_guessed_at(folder, content):
    with open_run(folder, SETTINGS) as run:
        run.save_last({})
    (folder / "settings.toml").unlink()
    if content is not None:
        (folder / "settings.toml").write_bytes(content)
    with (
        pytest.raises(UserError, match="last.pt but no settings.toml"),
        open_run(folder, SETTINGS),
    ):
        pass
    with open_run(folder, SETTINGS, force=True) as run:
        assert not run.last.exists()


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write .*bytes free"),
        open_run(tmp_path / "file" / "run", SETTINGS),
    ):
        pass


def test_figures_that_are_not_a_number_become_null(folder):
    finish(folder, SETTINGS, {"accuracy": math.nan, "num": 3, "name": "nan"})
    final = json.loads((folder / "final.json").read_text(), parse_constant=pytest.fail)
    assert final == {"accuracy": None, "num": 3, "name": "nan", "details": [1]}


def test_metrics_have_a_row_per_epoch(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([])
    assert not (tmp_path / "metrics.csv").exists()
    run.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": math.nan}])
    table = pandas.read_csv(tmp_path / "metrics.csv")
    assert list(table.columns) == ["epoch", "loss"] and table["epoch"].tolist() == [1, 2]
    assert table["loss"].isna().tolist() == [False, True]


def test_a_board_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"\.\[track\]"):
        runs.check_board()


def test_the_board_holds_the_numbers_of_a_row_where_one_is_wished_for(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for wished in (False, True):
        run = RunFolder(tmp_path, tensorboard=wished)
        for epoch in (1, 2):
            run.write_board({"epoch": epoch, "loss": epoch / 2, "note": "text"})
        assert (tmp_path / "tensorboard").exists() == wished
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


@pytest.fixture
def log(tree, tmp_path):
    catalog = scan(tree.images).catalog
    return FailureLog(RunFolder(tmp_path), catalog, 100, 0.03)


def test_failures_are_counted_once_each_and_by_species(log, tree, tmp_path):
    last = len(scan(tree.images).catalog) - 1
    log.add([(0, "=bad, \n cat"), (last, "bad yak")])
    log.add([(0, "=bad, \n cat")])
    log.add([])
    assert log.per_species() == {"cat": 1, "yak": 1}
    log.write()
    table = pandas.read_csv(tmp_path / "errors.csv")
    assert table["species"].tolist() == ["cat", "yak"]
    assert table["message"].tolist() == ["'=bad, \n cat", "bad yak"]  # no spreadsheet formula


def test_more_failures_than_allowed_stop_the_run_and_are_all_listed(log, tmp_path):
    log.add([(5, "a"), (9, "b"), (1, "c")])  # 3 of 100 are allowed
    with pytest.raises(UserError, match=r"4 images .* MAX_BAD_FRACTION allows \(3\).*last: d"):
        log.add([(3, "d")])
    assert pandas.read_csv(tmp_path / "errors.csv")["message"].tolist() == ["c", "d", "a", "b"]


def test_the_summary_is_greppable():
    text = runs.summary_block({"accuracy": 0.123456, "epochs": 7, "checkpoint": "x: y/best.pt"})
    assert text == "accuracy: 0.1235\nepochs: 7\ncheckpoint: x: y/best.pt"


def test_every_package_that_is_recorded_is_a_requirement():
    required = (scripts.REPOSITORY / "requirements.txt").read_text()
    assert all(f"\n{name}==" in required for name in runs._PACKAGES)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_only_asks_and_the_old_handler_comes_back(number, code, capsys):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked() and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.asked() and stop.leave("in epoch 3") == code
    assert signal.getsignal(number) is before
    assert capsys.readouterr().out == "stopped in epoch 3; the same command resumes there\n"


def test_a_second_signal_leaves_at_once():
    program = (
        "import os, signal\n"
        "from petface.training.runs import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('asked', stop.asked(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=scripts.REPOSITORY
    )
    assert done.returncode == 130
    assert done.stdout == "asked True\n"
    assert "once more to leave at once" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_must_end_first_the_first_signal_leaves(number):
    with StopRequest() as stop, pytest.raises(SystemExit) as left:
        stop.leave_at_once()
        os.kill(os.getpid(), number)
    assert left.value.code == 128 + number
    with StopRequest() as stop, pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), number)
        stop.leave_at_once()
    assert left.value.code == 128 + number
