"""The tool as a user runs it: what it says, what it refuses, and that its tree is used as it is."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from petface.data.images import Preprocessing
from petface.data.splits import SPLITS
from petface.errors import UserError
from petface.models import checkpoints
from tests import reference_networks as reference
from tests import scripts
from tests.data.sources.made_sources import OXFORD_BREEDS, inat, oxford, photo, tree
from tools.prepare_data import main


def run(capsys, *arguments) -> tuple[str, list[list[str]]]:
    """What the tool prints, and the commands that it names, as words."""
    main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    block = out.partition("\nnext:\n")[2].partition("\n\n")[0]
    return out, [shlex.split(line) for line in block.splitlines()]


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("stages", ["one", "two"])
def test_oxford_says_what_it_found_and_which_presets_come_next(
    tmp_path, capsys, monkeypatch, stages
):
    monkeypatch.chdir(tmp_path)
    oxford(tmp_path / "data/oxford")
    out, commands = run(capsys, "oxford_pets", "--stages", stages)
    assert ["class", "train", "val", "test"] in rows(out)
    name = "oxford_pets" if stages == "one" else "oxford_pets_two"
    total = ["3", "classes", "23", "2"] if stages == "one" else ["2", "classes", "22", "3"]
    assert ["all", *total, "13"] in rows(out)
    assert "left out, a photo in no official list: 1, such as images/Bengal_7.jpg" in out
    assert "no val split: drawn from train, 10% of each class" in out
    figures = scripts.Result(0, out, "").figures()
    assert figures["folder"] == f"data/{name}"
    assert (figures["photos"], figures["left_out"]) == ("38", "3")
    ran = [scripts.STAGE1, *[scripts.STAGE2] * (stages == "two"), scripts.INFERENCE]
    assert [words[1] for words in commands] == ran
    for words in commands:  # the presets name the folder that the tool makes
        text = (scripts.REPOSITORY / words[words.index("--config") + 1]).read_text()
        assert f'"data/{name}/images"' in text and f'"data/{name}/annotations"' in text


def test_other_sources_name_the_folders_in_their_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tree(tmp_path / "pets", *(f"train/cat/{n}.png" for n in range(30)), "test/cat/1.png")
    tree(source, "test/hen/1.png", "test/hen/2.png", "train/cat/notes.txt")
    out, (first, second) = run(capsys, "image_folder", "--source", source, "--out", "my out")
    assert "1 test classes are not in the train split: hen (2 photos)" in out
    assert ["cat", "27", "3", "1"] in rows(out)
    folders = ["--images-root", "my out/images", "--annotations-root", "my out/annotations"]
    preset = ["--config", "configs/stage1/own_photos.toml"]
    assert first[1:] == [scripts.STAGE1, *preset, *folders, "--run-name", "my_out"]
    assert second[1:5] == [
        scripts.INFERENCE, "evaluate", "--stage1-checkpoint", "runs/my_out/best.pt"
    ]  # fmt: skip
    names = [f"train_val2018/Aves/{n % 50:03d}/{n}.jpg" for n in range(1000)]
    tree(tmp_path / "inat", *names)
    inat(tmp_path / "t.json", names[:750])
    inat(tmp_path / "v.json", [*names[750:], "train_val2018/Aves/007/gone.jpg"])
    flags = ["inat_json", "--source", "inat", "--train", "t.json"]
    out, _ = run(capsys, *flags, "--val", "v.json")
    assert ["007", "13", "2", "5"] in rows(out) and "\n..." in out
    assert "left out, in the JSON, and no such photo: 1, such as train_val2018/Aves/007/g" in out
    assert "folder: data/inat_petface\n" in out
    assert ["all", "50", "classes", "750"] in rows(run(capsys, *flags, "--out", "alone")[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["oxford_pets", "--download", "--out", str(Path(__file__).parent)], "exists already"),
        (["image_foldr"], "image_folder, oxford_pets, inat_json, not 'image_foldr'"),
        ([], "give one source of"),
        (["image_folder"], "--source is missing"),
        (["inat_json", "--source", "x"], "--train is missing"),
        (["oxford_pets", "--stages", "three"], "--stages .*'three'"),
        (["oxford_pets", "--sourc", "x"], "unknown flag --sourc.*--source"),
        (["oxford_pets", "--seed", "-1"], "--seed"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words):
        main(arguments)


def test_the_evaluation_compares_names_not_numbers(tmp_path, capsys):
    """Folders cat, dog, hen are numbers 0, 1, 2; in the checkpoint cat is 2, dog 1, hen unknown."""
    from inference_engine import evaluate_full_dataset

    checkpoint = tmp_path / "best.pt"  # answers cat to every photo
    content = {
        "model": reference.classifier(3, favourite=2),
        "class_to_index": {"yak": 0, "dog": 1, "cat": 2},
        "preprocessing": Preprocessing(32).to_dict(),
    }
    checkpoints.save(checkpoint, content)
    for name, num in {"cat": 4, "dog": 3, "hen": 2}.items():
        for number in range(num):
            photo(tmp_path / f"photos/{name}/{number}.png")
    flags = ["--source", tmp_path / "photos", "--out", tmp_path / "out", "--checkpoint", checkpoint]
    out, (words,) = run(capsys, "image_folder", *flags)
    assert "1 test classes are not known to the checkpoint: hen (2 photos)" in out
    assert words[1:5] == [scripts.INFERENCE, "evaluate", "--stage1-checkpoint", str(checkpoint)]
    summary = evaluate_full_dataset(
        tmp_path / "out/images", tmp_path / "out/annotations", stage1_checkpoint=checkpoint,
        stage2_folder=tmp_path / "none", out_dir=tmp_path / "evaluation", device="cpu",
        precision="fp32", num_workers=0,
    )  # fmt: skip
    per_species = summary["stage1"]["per_species"]
    assert per_species["cat"] == {"num": 4, "correct": 4, "accuracy": 1.0}
    assert per_species["dog"]["num"] == 3 and per_species["dog"]["correct"] == 0
    assert summary["splits"]["test"]["stage1"]["overall"]["num"] == 7


@pytest.mark.slow  # a minute: three runs
def test_a_small_oxford_is_trained_and_evaluated(tmp_path, script, capsys):
    pets = oxford(tmp_path / "pets", draw_photos=True)
    _, commands = run(capsys, "oxford_pets", "--source", pets, "--out", tmp_path / "out")
    training, evaluation = commands
    tiny = ["--image-size-px", 32, "--weights", "none", "--epochs", 1, "--device", "cpu",
            "--batch-size", 8, "--num-workers", 0, "--precision", "fp32"]  # fmt: skip
    done = script(training[1], [*training[2:], *tiny, "--runs-root", tmp_path / "runs"]).checked()
    assert "was taken from oxford_pets in" in done.out
    folder = tmp_path / "runs/oxford_pets/stage1"
    final = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    assert final["test_images"] == sum(row[3] for row in OXFORD_BREEDS.values())
    arguments = [*evaluation[2:], "--stage1-checkpoint", folder / "best.pt", "--device", "cpu",
                 "--out-dir", tmp_path / "evaluation", "--precision", "fp32"]  # fmt: skip
    script(evaluation[1], arguments).checked()
    summary = Path(tmp_path / "evaluation/petface_eval_summary.json")
    parts = json.loads(summary.read_text(encoding="utf-8"))["splits"]
    assert [parts[name]["num_images"] for name in SPLITS] == [23, 2, 13]
