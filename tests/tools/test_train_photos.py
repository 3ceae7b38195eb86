"""From a folder of photos to a network to serve in one command, and the door to every command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import petface_command
from petface.data.sources.readers import read_image_folder
from petface.errors import UserError
from tests import scripts
from tools import train_photos

DOOR = scripts.REPOSITORY / "petface_command.py"
CONSOLE = "import petface_command; petface_command.main()"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of one colour each, a file that is no photo, and one that is broken."""
    root = tmp_path_factory.mktemp("own") / "my pets"
    noise = np.random.default_rng(0)
    for name, color in (("cat", 200), ("dog", 60)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(noise.normal(color, 20, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")
    (root / "cat/notes.txt").write_text("mine")
    return root


def petface(*words: object, cwd: Path, door: Path = DOOR) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does who has not installed it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(door), *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_folder_of_photos_becomes_a_network_that_predicts_them(photos, tmp_path):
    chosen = ["--weights", "none", "--epochs", "1", "--image-size-px", "32", "--name", "mine"]
    first = petface("train", photos, *chosen, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "24 photos of 2 classes" in first.stdout and "median side 40 px" in first.stdout
    final = json.loads((tmp_path / "runs/mine/stage1/final.json").read_text())
    assert final["test_images"] >= 2 and final["epochs"] == 1
    made = ["stage1/report.html", "evaluation/petface_eval_summary.json", "audit/audit.html"]
    assert [name for name in made if not (tmp_path / "runs/mine" / name).exists()] == []
    assert (tmp_path / "data/mine/left_out.csv").read_text().count("notes.txt") == 1
    show, predict, serve = first.stdout.partition("\nnext:\n")[2].strip().splitlines()
    assert shlex.split(serve)[-3:-2] == ["serve"]
    table = tmp_path / "runs/mine/evaluation/petface_eval_per_image.csv"
    assert "no_specialist" not in table.read_text()
    words = shlex.split(show)
    shown = petface(*words[words.index("show") :], cwd=tmp_path)
    assert shown.returncode == 0 and "cat" in shown.stdout, shown.stderr
    again = petface("train", photos, *chosen, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("is there already") == 4


def flags_of(num: int, *words: str) -> list[str]:
    s = train_photos.read_settings(train_photos, list(words))
    found = train_photos.Found("image_folder", Path("x"), entries=[None] * num)
    return train_photos.training_flags(s, found, "x")


@pytest.mark.parametrize(
    ("side_px", "num", "weights", "expected"),
    [
        (40, 1500, "none", ("own_photos_scratch", "32", "40")),
        (300, 1500, "none", ("own_photos_scratch", "96", "40")),
        (64, 1500, "w.pth", ("own_photos", "160", "10")),
        (500, 150, "w.pth", ("own_photos", "224", "20")),
        (500, 1_000_000, "w.pth", ("own_photos", "224", "4")),
    ],
)
def test_size_and_epochs_follow_the_photos(monkeypatch, side_px, num, weights, expected):
    monkeypatch.setattr(train_photos, "median_side_px", lambda _: side_px)
    flags = flags_of(num, "--weights", weights)
    preset, size, epochs = expected
    assert flags[1] == f"configs/stage1/{preset}.toml"
    assert flags[flags.index("--image-size-px") + 1] == size
    assert flags[flags.index("--epochs") + 1] == epochs


def test_a_training_that_was_begun_resumes_with_its_own_settings(monkeypatch, tmp_path):
    """It began without a network; that there is one now must not make it another training."""
    monkeypatch.setattr(
        train_photos, "load_torchvision_weights", lambda *_: pytest.fail("asked again")
    )
    begun = tmp_path / "x/stage1/settings.toml"
    begun.parent.mkdir(parents=True)
    begun.touch()
    flags = flags_of(1, "--runs-root", str(tmp_path), "--epochs", "7", "--device", "cpu")
    assert flags == ["--config", str(begun), "--epochs", "7", "--device", "cpu"]


@pytest.mark.parametrize("told", ["random (could not be had: no network)", "torchvision V2"])
def test_weights_that_cannot_be_had_are_said_and_training_begins_from_scratch(
    monkeypatch, capsys, told
):
    monkeypatch.setattr(train_photos, "load_torchvision_weights", lambda *_: told)
    monkeypatch.setattr(train_photos, "median_side_px", lambda _: 64)
    flags, is_had = flags_of(9), told == "torchvision V2"
    assert flags[flags.index("--weights") + 1] == ("torchvision" if is_had else "none")
    assert ("no network" in capsys.readouterr().out) is not is_had


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one/cat").mkdir(parents=True)
    (tmp_path / "one/cat/a.jpg").write_bytes((photos / "cat/0.jpg").read_bytes())
    with pytest.raises(UserError, match="only the class 'cat'"):
        train_photos.main(["one"])
    (tmp_path / "data/pets").mkdir(parents=True)
    (tmp_path / "data/pets/prepared.json").write_text('{"source": "/other", "photos": 3}')
    with pytest.raises(UserError, match="made of other photos of cat, dog than "):
        train_photos.main([str(photos), "--name", "pets"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one"]


def test_photos_that_changed_meanwhile_are_refused_by_class(photos, tmp_path):
    mine, tree, run = tmp_path / "mine", tmp_path / "data/tree", tmp_path / "run"
    shutil.copytree(photos, mine)

    def lay_out():
        train_photos.lay_out(read_image_folder(mine), tree, run)

    moves = [("cat/3.jpg", "dog/3.jpg", "cat, dog"), ("cat/4.jpg", "cat/5.jpg", "cat")]
    for old, new, changed in moves:
        lay_out()
        (mine / old).rename(mine / new)
        with pytest.raises(UserError, match=f"other photos of {changed} than .* remove {tree} and"):
            lay_out()
        shutil.copytree(photos, mine, dirs_exist_ok=True)
    (tmp_path / "data/tree.photos.json").unlink()
    lay_out()  # as where `petface prepare` was given alone
    run.mkdir()
    shutil.rmtree(tree)
    with pytest.raises(UserError, match=f"{run} was made of {tree}, which is not there"):
        lay_out()
    (mine / "cat/0.jpg").write_bytes(b"no photo")
    assert train_photos.median_side_px(read_image_folder(mine)) == 40


def test_every_tool_and_script_has_a_door():
    doors = {text.split()[0] for text, _ in petface_command.COMMANDS.values()}
    tools = {path.stem for path in (scripts.REPOSITORY / "tools").glob("*.py")}
    trainers_and_engine = (scripts.STAGE1, scripts.STAGE2, "train_identity.py", scripts.INFERENCE)
    assert doors - tools == {Path(name).stem for name in trainers_and_engine}
    assert tools - doors == {"__init__", "demo_animals", "demo_faces", "labels"}


def test_the_door_lists_its_commands_and_refuses_others(tmp_path):
    listed, refused = petface(cwd=tmp_path), petface("trian", cwd=tmp_path)
    assert listed.returncode == 0 and "find-label-errors" in listed.stdout
    assert refused.returncode == 1 and "no command 'trian'" in refused.stderr
    (tmp_path / "torch.py").write_text("raise MemoryError")
    (tmp_path / "pip").write_text(f"import sys; sys.path.append({str(DOOR.parent)!r}); {CONSOLE}")
    broken = petface("serve", cwd=tmp_path, door=tmp_path / "pip")
    assert "not enough memory" in broken.stderr and "Traceback" not in broken.stderr


@pytest.mark.slow
def test_an_installation_runs_from_anywhere(tmp_path):
    """Everything but the packages is in the wheel: scripts, tools, presets, templates, the page."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    place = ["--no-build-isolation", "--target", str(tmp_path / "site"), str(scripts.REPOSITORY)]
    subprocess.run([*pip, *place], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "tools").mkdir()  # of somebody else
    for code in (
        "import inference_engine; inference_engine.Stage1Model",
        f"import sys; sys.argv = ['petface', 'sweep', '--help']; {CONSOLE}",
    ):
        line = [sys.executable, "-P", "-c", code]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(scripts.REPOSITORY) not in done.stdout
    assert done.stdout.startswith("usage: petface sweep [")
    site = tmp_path / "site"
    for name in ("petface/py.typed", "petface/tools/sweep.py", "petface/report/templates"):
        assert (site / name).exists()
    assert (site / "share/petface/configs/stage1/own_photos.toml").exists()
