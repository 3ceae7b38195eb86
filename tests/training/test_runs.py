"""The run folder: held once, refused or resumed, explained; signals; failures; TensorBoard."""

import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pandas
import pytest
import torch

from petface.data.sources.petface import scan
from petface.errors import UserError
from petface.models import checkpoints
from petface.training import records
from petface.training.records import Tracking
from petface.training.runs import FailureLog, RunFolder, StopRequest, open_run, run_path
from tests import scripts

SETTINGS = 'LR = 0.5  # of AdamW\nSPECIES = "all"\nNUM_WORKERS = 0\n'
OTHER = SETTINGS.replace("0.5", "0.25")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "mine"


@pytest.fixture
def unfinished(folder):
    with open_run(folder, SETTINGS, global_batch_size=64) as run:
        run.save_last({"epoch": 1})
    assert checkpoints.load(run.last)["global_batch_size"] == 64
    return folder


def refused(words, folder, settings=SETTINGS, **options):
    with pytest.raises(UserError, match=words), open_run(folder, settings, **options):
        pass


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
    required = (scripts.REPOSITORY / "requirements.txt").read_text()
    assert all(f"\n{name}==" in required for name in facts["packages"])


def test_a_finished_run_is_refused_and_replaced_by_force_alone(folder, capsys):
    with open_run(folder, SETTINGS) as run:
        torch.save({}, run.best)
        run.finish({"accuracy": math.nan, "num": 3, "auc": 0.12345}, {"details": [1]})
    assert capsys.readouterr().out.startswith("accuracy: nan\nnum: 3\nauc: 0.1235\n")
    final = json.loads((folder / "final.json").read_text(), parse_constant=pytest.fail)
    assert final == {"accuracy": None, "num": 3, "auc": 0.12345, "details": [1]}
    before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}
    refused("holds a finished run; choose another RUN_NAME, or --force", folder, OTHER)
    assert all(path.read_bytes() == content for path, content in before.items())
    (folder / "notes.md").write_text("mine")
    with open_run(folder, OTHER, switches=("force",)):
        assert not (folder / "best.pt").exists() and not (folder / "final.json").exists()
    assert (folder / "notes.md").read_text() == "mine"


def test_an_unfinished_run_resumes_with_its_own_settings_and_images_a_step(unfinished):
    refused(r"other settings \(LR: 0.5 -> 0.25\).*settings.toml", unfinished, OTHER)
    refused("64 images a step; this would take 32", unfinished, global_batch_size=32)
    changed = SETTINGS.replace("all", "cat").replace("NUM_WORKERS = 0", "NUM_WORKERS = 3")
    refused("NUM_WORKERS: 0 -> 3", unfinished, changed)
    may_change = ("SPECIES", "NUM_WORKERS")
    with open_run(unfinished, changed, may_change=may_change, global_batch_size=64) as run:
        assert run.last.exists()
    with open_run(unfinished, OTHER, switches=("force",)) as run:
        assert not run.last.exists()
    with open_run(unfinished, SETTINGS):  # nothing was saved yet
        assert (unfinished / "settings.toml").read_text() == SETTINGS


@pytest.mark.parametrize("content", [None, b"LR = ", b"\xff"])
def test_an_unfinished_run_without_its_settings_is_not_guessed_at(unfinished, content):
    (unfinished / "settings.toml").unlink()
    if content is not None:
        (unfinished / "settings.toml").write_bytes(content)
    refused("last.pt but no settings.toml", unfinished)
    with open_run(unfinished, SETTINGS, switches=("force",)) as run:
        assert not run.last.exists()


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot write .*bytes free", tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("package", "wish"),
    [("torch.utils.tensorboard", Tracking(True)), ("wandb", Tracking(wandb_project="pets"))],
)
def test_a_tracker_without_its_package_is_refused(folder, monkeypatch, package, wish):
    monkeypatch.setitem(sys.modules, package, None)
    refused(r"\.\[track\]", folder, tracking=wish)


def test_the_board_holds_the_numbers_of_a_row_where_one_is_wished_for(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for wished in (False, True):
        for epoch in (1, 2):
            row = {"epoch": epoch, "loss": epoch / 2, "note": "text"}
            Tracking(wished).write(tmp_path, row)
        assert (tmp_path / "tensorboard").exists() == wished
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


def test_weights_and_biases_gets_the_same_numbers_in_one_run(tmp_path, monkeypatch):
    begun, logged = [], []
    fake = SimpleNamespace(log=lambda figures, step: logged.append((step, figures)))
    module = SimpleNamespace(init=lambda **options: begun.append(options) or fake)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for epoch in (1, 2):
        row = {"epoch": epoch, "loss": epoch / 2, "note": "text"}
        Tracking(wandb_project="pets").write(tmp_path, row)
    assert logged == [(1, {"loss": 0.5}), (2, {"loss": 1.0})]
    assert len(begun) == 1 and begun[0]["project"] == "pets" and begun[0]["dir"] == tmp_path


def test_weights_and_biases_offline_leaves_its_files_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Tracking(wandb_project="pets").write(tmp_path, {"epoch": 1, "loss": 0.5})
    records._wandb_run("pets", tmp_path).finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_failures_are_counted_once_each_and_too_many_stop_the_run(tree, tmp_path):
    def written():
        return pandas.read_csv(tmp_path / "errors.csv").to_dict("list")

    catalog = scan(tree.images).catalog
    log, last = FailureLog(RunFolder(tmp_path), catalog, 100, 0.03), len(catalog) - 1
    log.add([(0, "=bad, \n cat"), (last, "bad yak")])
    log.add([(0, "=bad, \n cat"), (5, "a")])  # 3 of 100 are allowed
    log.add([])
    assert log.per_species() == {"cat": 2, "yak": 1}
    log.write()
    messages = ["'=bad, \n cat", "a", "bad yak"]  # in the catalog's order, no spreadsheet formula
    assert written() == {"species": ["cat", "cat", "yak"], "message": messages}
    with pytest.raises(UserError, match=r"4 images .* MAX_BAD_FRACTION allows \(3\).*last: d"):
        log.add([(3, "d")])
    assert written()["message"] == ["'=bad, \n cat", "d", "a", "bad yak"]


@pytest.mark.parametrize(("max_bad_frac", "allowed"), [(0.01, 2), (0.05, 4), (0.0, 0)])
def test_one_broken_photo_of_81_does_not_end_a_training(tmp_path, tree, max_bad_frac, allowed):
    log = FailureLog(RunFolder(tmp_path), scan(tree.images).catalog, 81, max_bad_frac)
    log.add([(place, "cut") for place in range(allowed)])
    with pytest.raises(UserError, match=rf"MAX_BAD_FRACTION allows \({allowed}\)"):
        log.add([(9, "cut")])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_only_asks_unless_nothing_must_end_first(number, code, capsys):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.asked() and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.asked() and stop.leave("in epoch 3") == code
        with pytest.raises(SystemExit, match=str(code)):
            stop.leave_at_once()
    assert signal.getsignal(number) is before
    assert capsys.readouterr().out == "stopped in epoch 3; the same command resumes there\n"
    with StopRequest() as stop, pytest.raises(SystemExit, match=str(code)):
        stop.leave_at_once()
        os.kill(os.getpid(), number)


def test_a_second_signal_leaves_at_once():
    program = """
import os, signal
from petface.training.runs import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print('asked', stop.asked(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print('still here')
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=scripts.REPOSITORY
    )
    assert (done.returncode, done.stdout) == (130, "asked True\n")
    assert "once more to leave at once" in done.stderr
