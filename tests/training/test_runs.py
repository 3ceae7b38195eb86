import json
import math
import os
import sys
import types

import pandas
import pytest
import torch

from petface.data.sources.petface import scan
from petface.errors import UserError
from petface.settings import read_settings
from petface.training import board, runs
from petface.training.runs import FailureLog, RunFolder, open_run, run_path, summary_block
from tests import scripts

SCRIPT = '''"""A script."""
LR: float = 0.1
SPECIES: str = "all"
NUM_WORKERS: int = 0
'''


@pytest.fixture
def settings_of(tmp_path):
    """Read the settings of a little script with the given flags."""
    path = tmp_path / "little.py"
    path.write_text(SCRIPT)
    module = types.ModuleType("little")
    module.__file__ = str(path)
    exec(compile(SCRIPT, str(path), "exec"), module.__dict__)
    return lambda *flags: read_settings(module, list(flags))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "mine"


def test_a_run_name_stays_inside_the_runs():
    assert str(run_path("runs", "a/b")) == "runs/a/b"
    for name in ("", "..", "../x", "a/../../x", "/etc", "a\0b"):
        with pytest.raises(UserError, match="must be a plain name inside runs"):
            run_path("runs", name)


def test_a_new_run_explains_itself(folder, settings_of):
    settings = settings_of("--lr", "0.5")
    with open_run(folder, settings, prefix="cat_") as run:
        assert run.last == folder / "cat_last.pt" and run.best == folder / "cat_best.pt"
    assert settings_of("--config", str(folder / "settings.toml")) == settings
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["command"] == sys.argv and facts["python"].count(".") == 2


def test_a_held_folder_is_refused_by_who_holds_it_and_free_afterwards(folder, settings_of):
    with open_run(folder, settings_of()):
        with (
            pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "),
            open_run(folder, settings_of()),
        ):
            pass
        with (  # not even with force, which would delete what the other one writes
            pytest.raises(UserError, match="is in use by"),
            open_run(folder, settings_of(), force=True),
        ):
            pass
    with open_run(folder, settings_of()):
        pass


def test_the_hold_ends_with_its_process_although_a_worker_of_it_lives_on(folder, settings_of):
    """A killed run leaves its loader workers behind for some seconds; they must not hold on."""
    (here, there), (ready, tell) = os.pipe(), os.pipe()
    with open_run(folder, settings_of()):
        worker = os.fork()
        if worker == 0:
            os.close(there)
            os.write(tell, b"!")
            os.read(here, 1)  # lives until the test closes its end
            os._exit(0)
        os.read(ready, 1)
    try:
        with open_run(folder, settings_of()):
            pass
    finally:
        for descriptor in (here, there, ready, tell):
            os.close(descriptor)
        os.waitpid(worker, 0)


def finish(folder, settings, figures=None):
    with open_run(folder, settings) as run:
        torch.save({}, run.best)
        run.finish(figures or {"accuracy": 0.5})


def contents(folder):
    """Every file but the lock, which says since when it is held."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_finished_run_is_refused_and_replaced_by_force_alone(folder, settings_of):
    finish(folder, settings_of())
    before = contents(folder)
    with (
        pytest.raises(UserError, match="holds a finished run; choose another RUN_NAME, or --force"),
        open_run(folder, settings_of("--lr", "9")),
    ):
        pass
    assert contents(folder) == before
    (folder / "notes.md").write_text("mine")
    with open_run(folder, settings_of("--lr", "9"), force=True):
        assert not (folder / "best.pt").exists() and not (folder / "final.json").exists()
    assert (folder / "notes.md").read_text() == "mine"


def test_an_unfinished_run_goes_on_with_its_own_settings_only(folder, settings_of):
    with open_run(folder, settings_of("--lr", "0.5")) as run:
        torch.save({}, run.last)
    with (
        pytest.raises(UserError, match=r"other settings \(LR: 0.5 -> 0.25\).*settings.toml"),
        open_run(folder, settings_of("--lr", "0.25")),
    ):
        pass
    free = settings_of("--lr", "0.5", "--species", "cat", "--num-workers", "3")
    with open_run(folder, free) as run:
        assert run.last.exists()
    with open_run(folder, settings_of("--lr", "0.25"), force=True) as run:
        assert not run.last.exists()


def test_a_run_that_saved_nothing_yet_may_begin_with_other_settings(folder, settings_of):
    for flags in ([], ["--lr", "0.25"]):
        with open_run(folder, settings_of(*flags)):
            pass
    assert settings_of("--config", str(folder / "settings.toml")).LR == 0.25


@pytest.mark.parametrize("content", [None, b"LR = ", b"\xff"])
def test_an_unfinished_run_without_its_settings_is_not_guessed_at(folder, settings_of, content):
    with open_run(folder, settings_of()) as run:
        run.save(run.last, {})
    (folder / "settings.toml").unlink()
    if content is not None:
        (folder / "settings.toml").write_bytes(content)
    with (
        pytest.raises(UserError, match="last.pt but no settings.toml"),
        open_run(folder, settings_of()),
    ):
        pass
    with open_run(folder, settings_of(), force=True) as run:
        assert not run.last.exists()


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path, settings_of):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write .*bytes free"),
        open_run(tmp_path / "file" / "run", settings_of()),
    ):
        pass


def test_figures_that_are_not_a_number_become_null(folder, settings_of):
    finish(folder, settings_of(), {"accuracy": math.nan, "num": 3, "name": "nan"})
    final = json.loads((folder / "final.json").read_text(), parse_constant=pytest.fail)
    assert final == {"accuracy": None, "num": 3, "name": "nan"}


def test_metrics_have_a_row_per_epoch(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([])
    assert not (tmp_path / "metrics.csv").exists()
    run.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": math.nan}])
    table = pandas.read_csv(tmp_path / "metrics.csv")
    assert list(table.columns) == ["epoch", "loss"] and table["epoch"].tolist() == [1, 2]
    assert table["loss"].isna().tolist() == [False, True]


def test_each_epoch_goes_to_the_board_once_where_one_is_wished_for(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(board, "write_board", lambda folder, row: written.append((folder, row)))
    history = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}]
    RunFolder(tmp_path).write_metrics(history)
    run = RunFolder(tmp_path, has_board=True)
    for num in (1, 2, 2):  # the last one again, as at the end of a run
        run.write_metrics(history[:num])
    assert written == [(tmp_path, history[0]), (tmp_path, history[1])]


def test_a_board_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"\.\[track\]"):
        board.check_board()


def test_the_board_holds_the_numbers_of_a_row(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epoch in (1, 2):
        row = {"epoch": epoch, "loss": epoch / 2, "note": "text"}
        board.write_board(tmp_path, row)
    found = EventAccumulator(str(tmp_path / board.FOLDER)).Reload()
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
    text = summary_block({"accuracy": 0.123456, "epochs": 7, "checkpoint": "runs/x: y/best.pt"})
    assert text == "accuracy: 0.1235\nepochs: 7\ncheckpoint: runs/x: y/best.pt"


def test_every_package_that_is_recorded_is_a_requirement():
    required = (scripts.REPOSITORY / "requirements.txt").read_text()
    assert all(f"\n{name}==" in required for name in runs._PACKAGES)
