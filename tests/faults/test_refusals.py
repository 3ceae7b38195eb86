"""What cannot be used as flags, data, checkpoints or names, on the real scripts: one line."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
from contextlib import closing

import pytest
import torch

from tests import naive, scripts
from tests.conftest import TINY_STAGE1, TINY_STAGE2
from tests.faults.test_checkpoints import Planted
from tests.scripts import assert_refused

SCRIPTS = [scripts.STAGE1, scripts.STAGE2, scripts.INFERENCE]
TOOLS = sorted(
    str(path.relative_to(scripts.REPOSITORY))
    for path in (scripts.REPOSITORY / "tools").glob("*.py")
    if "run_script(" in path.read_text(encoding="utf-8")
)
FIRST = {scripts.INFERENCE: ["evaluate"], "tools/prepare_data.py": ["oxford_pets"]}


@pytest.mark.parametrize("name", [*SCRIPTS, *TOOLS])
def test_a_script_ends_by_run_script_and_loads_what_names_its_faults_first(name):
    text = (scripts.REPOSITORY / name).read_text(encoding="utf-8")
    assert text.endswith("    run_script(main)\n")
    loaded = re.findall(r"^(?:from|import) (\w+)", text, re.M)
    assert next(one for one in loaded if one not in sys.stdlib_module_names) == "petface"


@pytest.mark.parametrize("name", [*SCRIPTS, *TOOLS])
def test_a_misspelt_flag_is_named_with_the_nearest(script, name):
    if name in [scripts.STAGE1, *TOOLS[:2]]:  # one code for all
        shown = script(name, ["--help-all"]).checked().out
        assert max(map(len, shown.split("\n")[1:])) <= 80
        assert ("usage: python -m tools." in shown) == (name in TOOLS)
    text = (scripts.REPOSITORY / name).read_text(encoding="utf-8")
    longest = max(re.findall(r"^([A-Z][A-Z0-9_]+): ", text, re.M), key=len)
    flag = "--" + longest.lower().replace("_", "-")
    misspelt = flag[:4] + flag[5:]
    done = script(name, [*FIRST.get(name, []), misspelt, "5"])
    assert_refused(done, misspelt, flag, code=2)
    assert done.out == ""


class Place:
    """Copies of the dataset and of the networks, to be damaged; and the commands that use them."""

    def __init__(self, tree, stage1_run, stage2_run, folder):
        assert stage1_run.result.code == 0  # it made splits.csv
        self.folder, self.tree = folder, tree.copy(folder / "data")
        self.stage1, self.cat = folder / "best.pt", folder / "stage2/cat_best.pt"
        self.cat.parent.mkdir()
        self.stage1.write_bytes((stage1_run.folder / "best.pt").read_bytes())
        self.cat.write_bytes((stage2_run.folder / "cat/cat_best.pt").read_bytes())
        self.photo = self.tree.images / naive.photos(tree.images)[0]
        runs = ["--runs-root", folder / "runs", "--run-name", "run"]
        models = ["--stage1-checkpoint", self.stage1, "--stage2-folder", folder / "stage2"]
        models += ["--device", "cpu"]
        data, inference = self.tree.flags, scripts.INFERENCE
        self.commands = {
            "stage1": (scripts.STAGE1, [*data, *TINY_STAGE1, *runs]),
            "stage2": (scripts.STAGE2, [*data, *TINY_STAGE2, *runs, "--species", "cat"]),
            "evaluate": (inference, ["evaluate", *data, *models, "--out-dir", folder / "out"]),
            "predict": (inference, ["predict", self.photo, *models, "--out", folder / "a.csv"]),
            "photo": (inference, [self.photo, *models]),
            "pack": (scripts.PACK, ["--images-root", data[1], "--out", folder / "a.bin"]),
        }

    def edit_stage1(self, bias, **changes):
        """Change entries of the checkpoint and the bias of a class, by its number."""
        content = torch.load(self.stage1, weights_only=True) | changes
        for number, value in bias.items():
            content["model"]["fc.bias"][number] = value
        torch.save(content, self.stage1)

    def edit_split(self):
        path = self.tree.root / "splits.csv"
        path.write_text(path.read_text().replace("test", "train", 1))

    def add_record(self):
        (self.tree.images / "dog/000099").mkdir()
        (self.tree.images / "dog/000099/00.png").write_bytes(b".")

    def write_preset(self, text):
        (self.folder / "mine.toml").write_text(text)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def place(tree, stage1_run, stage2_run, tmp_path):
    return Place(tree, stage1_run, stage2_run, tmp_path)


WAYS = "evaluate predict photo"
CASES = {  # commands, flags, exit code, damage, words of the line
    "a preset's key": (
        "stage1 evaluate", ["--config", "mine.toml"], 2,
        lambda p: p.write_preset("\nBATCH_SIZ = 8"), ["mine.toml:2", "nearest: BATCH_SIZE"],
    ),
    "a preset's value": (
        "stage2", ["--config", "mine.toml"], 2,
        lambda p: p.write_preset("\n\nBATCH_SIZE = -1"), ["mine.toml:3", "BATCH_SIZE", "-1"],
    ),
    "a preset that is not there": (
        "stage1", ["--config", "mime.toml"], 2, lambda p: p.write_preset(""), ["mine.toml"],
    ),
    "a flag's value": (
        "stage1 stage2 evaluate", ["--precision", "fp8"], 2, None, ["--precision", "'fp8'"],
    ),
    "no GPU": (
        "stage1 stage2 photo", ["--device", "cuda"], 1, None,
        ["error: DEVICE 'cuda' cannot be used (", "'cpu'"],
    ),
    "weights for other bodies": (
        "stage1", ["--bodies", 2, "--weights", "a.pt,b.pt,c.pt"], 2, None,
        ["WEIGHTS is a list of 3, but BODIES is 2"],
    ),
    "limits that descend": (
        "stage2", ["--weight-clip", 8, 0.2], 2, None, ["WEIGHT_CLIP must ascend, not (8.0, 0.2)"],
    ),
    "a floor above its cap": (
        "stage1", ["--min-weight-per-class", 5], 2, None, ["5.0 exceeds 3.0 of MAX_UPWEIGHT"],
    ),
    "too many bodies": ("stage1", ["--bodies", 9], 1, None, ["bodies is 9, not a whole number"]),
    "an unknown backbone": ("stage2", ["--backbone", "vgg"], 1, None, ["resnet18, resnet34"]),
    "a level too high": (
        "stage1", ["--images-root", "data"], 1, None,
        ["use this folder instead: {}/data/images", "images/<species>/<record>/<image>"],
    ),
    "labels in Latin-1": (
        "stage1 evaluate", [], 1,
        lambda p: (p.tree.annotations / "cat.csv").write_bytes(b"Name,Breed\n1,Pinscher \xe9\n"),
        ["cat.csv, line 2: ", "not UTF-8"],
    ),
    "an edited split": (
        "stage1 evaluate", [], 1, Place.edit_split, ["{}/data/splits.csv", "edited", "delete"],
    ),
    "changed data": ("stage1 evaluate", [], 1, Place.add_record, ["000099", "delete"]),
    "a flipped bit": (
        "evaluate predict", [], 1, lambda p: flip_a_bit(p.cat),
        ["{}/stage2/cat_best.pt", "checksum", "copy the file again"],
    ),
    "half a file": (
        WAYS, [], 1, lambda p: p.stage1.write_bytes(p.stage1.read_bytes()[:99_999]),
        ["{}/best.pt: ", "damaged"],
    ),
    "planted code": (
        "photo", [], 1,
        lambda p: torch.save({"model": Planted(p.folder / "trace")}, p.stage1),
        ["{}/best.pt: ", "holds pickled objects", "mkdir"],
    ),
    "a class that is a path": (
        "photo", [], 1, lambda p: p.edit_stage1(
            {0: 1e6}, class_to_index={"../secret": 0, "chimp": 1, "dog": 2, "yak": 3}
        ), ["'../secret'", "plain name"],
    ),
    "a run above its folder": ("stage1", ["--run-name", "a/../../out"], 1, None, ["plain name in"]),
    "a run elsewhere": ("stage2", ["--run-name", "/tmp/out"], 1, None, ["plain name inside"]),
    "a species that is a path": ("stage2", ["--species", "../out"], 1, None, ["../out"]),
    "a place that torchrun does not give": (
        "stage1", scripts.Place(3, 2, 1), 1, None, ["RANK 3 is not below WORLD_SIZE 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("commands", "more", "code", "damage", "words"), CASES.values(), ids=CASES)
def test_what_cannot_be_used_is_named_in_one_line(
    script, place, monkeypatch, commands, more, code, damage, words
):
    monkeypatch.chdir(place.folder)
    if damage is not None:
        damage(place)
    for command in commands.split():
        name, flags = place.commands[command]
        hook, more = (more, []) if isinstance(more, scripts.Place) else (None, more)
        done = script(name, [*flags, *more], hook)
        assert_refused(done, *(word.format(place.folder) for word in words), code=code)
    made = {path.name for path in place.folder.rglob("*")}
    assert not made & {"trace", "out", "last.pt", "final.json", "a.csv"}


def test_a_second_process_is_told_who_holds_what_it_would_write(script, place):
    for command, held in {
        "stage1": "runs/run/run.lock",
        "evaluate": "out/petface_eval_per_image.csv.unfinished",
        "predict": "a.csv.unfinished",
        "pack": "a.bin.unfinished",
    }.items():
        path, (name, flags) = place.folder / held, place.commands[command]
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(path.open("a+b")) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for more in ([], ["--force"] if command == "stage1" else []):
                assert_refused(script(name, [*flags, *more]), f" by process {os.getpid()}")
        assert not path.with_suffix("").exists()


def test_an_unfinished_run_resumes_from_a_whole_file_and_with_its_own_settings_alone(script, place):
    last, (name, flags) = place.folder / "runs/run/last.pt", place.commands["stage1"]
    stop = scripts.SignalAtStep(1, signal.SIGTERM)
    assert script(name, flags, scripts.SignalAtStep(2, signal.SIGTERM)).code == 143
    before = last.read_bytes()
    flip_a_bit(last)
    damaged = last.read_bytes()
    assert_refused(script(name, flags), last, "checksum")
    assert last.read_bytes() == damaged
    last.write_bytes(before)
    assert_refused(
        script(name, [*flags, "--lr", 0.5]), "LR: 0.001 -> 0.5", "settings.toml", "--force"
    )
    assert last.read_bytes() == before
    # the ways out that the message names
    done = script(name, [*flags, "--config", last.with_name("settings.toml")], stop)
    assert done.code == 143 and "resuming at epoch 1, step 2" in done.out
    forced = script(name, [*flags, "--lr", 0.5, "--force"], stop)
    assert forced.code == 143 and "resuming" not in forced.out


def test_answers_that_are_not_finite_are_rows_without_a_class(script, place, tree):
    place.edit_stage1({1: float("nan")})
    name, flags = place.commands["predict"]
    flags[1] = place.photo.parent
    num = len(list(place.photo.parent.iterdir()))
    assert script(name, flags).checked().figures()["non_finite"] == str(num)
    rows = naive.rows_of(place.folder / "a.csv")
    assert len(rows) == num and all("the network's answer" in row["message"] for row in rows)
    script(*place.commands["evaluate"]).checked()
    rows = naive.rows_of(place.folder / "out/petface_eval_per_image.csv")
    found = [row for row in rows if row["status"] == "non_finite"]
    assert len(found) == len(naive.photos(tree.images)) - 3 and found[0]["species_pred"] == ""
    assert '"non_finite": 126' in (place.folder / "out/petface_eval_summary.json").read_text()
