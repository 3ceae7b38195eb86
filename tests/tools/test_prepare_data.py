"""The tool as a user runs it: what it says, what it refuses, and that its tree is used as it is."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from petface.data.splits import SPLITS
from petface.errors import SettingsError, UserError
from petface.settings import read_settings
from tests import scripts
from tests.data.sources.made_sources import OXFORD_BREEDS, inat, oxford, photo, tree
from tools.prepare_data import main


def figures(out: str) -> dict[str, str]:
    return scripts.Result(0, out, "").figures()


def commands(out: str) -> list[list[str]]:
    """The commands that the tool names, as words."""
    block = out.partition("\nnext:\n")[2].partition("\n\n")[0]
    return [shlex.split(line) for line in block.splitlines()]


def test_oxford_says_what_it_found_and_which_commands_come_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    oxford(tmp_path / "data/oxford")
    main(["oxford_pets"])
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["class", "train", "val", "test"] in rows
    assert ["Abyssinian", "11", "1", "5"] in rows
    assert ["Egyptian_Mau", "3", "0", "2"] in rows
    assert ["all", "3", "classes", "23", "2", "13"] in rows
    assert "1 classes have no photo in val: Egyptian_Mau" in out
    assert "left out, a photo in no official list: 1 (images/Bengal_7.jpg)" in out
    assert "no val part: cut from train, 10% of each class" in out
    assert figures(out)["folder"] == "data/oxford_pets"
    assert (figures(out)["photos"], figures(out)["left_out"]) == ("38", "3")
    assert [" ".join(words) for words in commands(out)] == [
        "python train_resnet_minority_aug_dynamic.py --config configs/stage1/oxford_pets.toml",
        "python inference_engine.py evaluate --config configs/eval/oxford_pets.toml",
    ]
    main(["oxford_pets", "--stages", "two", "--out", "data/my pets"])
    words = commands(capsys.readouterr().out)
    assert [w[1] for w in words] == [scripts.STAGE1, scripts.STAGE2, scripts.INFERENCE]
    assert words[1][2:] == [
        "--config", "configs/stage2/oxford_pets_two.toml", "--images-root", "data/my pets/images",
        "--annotations-root", "data/my pets/annotations",
    ]  # fmt: skip


@pytest.mark.parametrize("stages", ["one", "two"])
def test_the_presets_name_the_folder_that_the_tool_makes(tmp_path, monkeypatch, capsys, stages):
    import inference_engine
    import stage2_resnet_multi
    import train_resnet_minority_aug_dynamic

    modules = {
        m.__name__ + ".py": m
        for m in (inference_engine, stage2_resnet_multi, train_resnet_minority_aug_dynamic)
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(scripts.REPOSITORY / "configs")
    oxford(tmp_path / "data/oxford")
    main(["oxford_pets", "--stages", stages])
    out = capsys.readouterr().out
    for words in commands(out):
        arguments = [word for word in words[2:] if word != "evaluate"]
        settings = read_settings(modules[words[1]], arguments)
        assert Path(settings.IMAGES_ROOT).is_dir() and Path(settings.ANNOTATIONS_ROOT).is_dir()
        assert Path(settings.IMAGES_ROOT).parent == Path(figures(out)["folder"])


def test_image_folders_with_parts(tmp_path, capsys):
    source = tree(tmp_path / "pets", *(f"train/cat/{n}.png" for n in range(30)), "test/cat/1.png")
    tree(source, "test/hen/1.png", "test/hen/2.png", "train/cat/notes.txt")
    main(["image_folder", "--source", str(source), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "1 classes of the test part are not in the train part: hen (2 photos)" in out
    assert ["cat", "27", "3", "1"] in [line.split() for line in out.splitlines()]
    first, second = commands(out)
    assert first[1:] == [
        scripts.STAGE1, "--images-root", f"{tmp_path}/out/images", "--annotations-root",
        f"{tmp_path}/out/annotations", "--run-name", "out",
    ]  # fmt: skip
    assert second[1:5] == [
        scripts.INFERENCE, "evaluate", "--stage1-checkpoint", "runs/out/best.pt"
    ]  # fmt: skip


def test_inaturalist(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"train_val2018/Aves/7/{n}.jpg" for n in range(20)]
    tree(tmp_path / "inat", *names)
    inat(tmp_path / "t.json", names[:15])
    inat(tmp_path / "v.json", [*names[15:], "train_val2018/Aves/7/gone.jpg"])
    flags = ["inat_json", "--source", "inat", "--train", "t.json"]
    main([*flags, "--val", "v.json"])
    out = capsys.readouterr().out
    assert ["7", "13", "2", "5"] in [line.split() for line in out.splitlines()]
    assert "left out, in the JSON, and no such photo: 1 (train_val2018/Aves/7/gone.jpg)" in out
    assert figures(out)["folder"] == "data/inat_petface"
    main([*flags, "--out", "alone"])
    assert ["7", "15"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_many_classes_are_cut_short(tmp_path, capsys):
    tree(tmp_path / "pets", *(f"class {n:03d}/1.png" for n in range(60)))
    main(["image_folder", "--source", str(tmp_path / "pets"), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "... 20 more, see sources.csv" in out and "all 60 classes" in out
    assert out.count("class 0") == 40


def test_without_a_network_the_download_is_one_message(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("Temporary failure in name resolution")

    module = ModuleType("torchvision.datasets")
    module.OxfordIIITPet = fail
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    with pytest.raises(UserError) as error:
        main(["oxford_pets", "--source", str(tmp_path / "pets"), "--download", "true",
              "--out", str(tmp_path / "out")])  # fmt: skip
    assert "Temporary failure" in str(error.value)
    assert "https://www.robots.ox.ac.uk/~vgg/data/pets/" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["image_foldr"], ["unknown source 'image_foldr'", "image_folder, oxford_pets, inat_json"]),
        (["image_folder"], ["--source is missing"]),
        (["inat_json", "--source", "x"], ["--train is missing"]),
        (["oxford_pets", "--stages", "three"], ["--stages", "'three'"]),
        (["oxford_pets", "--download", "maybe"], ["--download", "'maybe'", "true"]),
        (["oxford_pets", "--sourc", "x"], ["unknown --sourc", "--source"]),
        (["oxford_pets", "--seed", "-1"], ["--seed -1"]),
        (["oxford_pets", "--seed", "x"], ["--seed", "'x'"]),
        (["oxford_pets", "--link", "soft"], ["--link", "'soft'"]),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, words):
    with pytest.raises(SettingsError) as error:
        main(arguments)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_an_existing_folder_is_refused_before_any_work(tmp_path):
    tree(tmp_path / "out", "mine.txt")
    with pytest.raises(UserError, match="exists already"):
        main(["oxford_pets", "--download", "true", "--source", str(tmp_path / "none"),
              "--out", str(tmp_path / "out")])  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_a_mistake_is_one_line_of_the_real_script(script, tmp_path):
    done = script("tools/prepare_data.py", ["image_folder", "--source", tmp_path / "none"])
    assert done.code == 1 and "Traceback" not in done.err and done.out == ""
    assert done.err.startswith(f"error: --source {tmp_path}/none does not exist")
    done = script("tools/prepare_data.py", [])
    assert done.code == 2 and "image_folder" in done.out


@pytest.fixture(scope="module")
def checkpoint(module_folder) -> Path:
    """A stage 1 that knows yak, dog and cat in this order, and answers cat to every photo."""
    from petface.data.images import Preprocessing
    from petface.models import checkpoints
    from tests import reference_networks as reference

    path = module_folder / "best.pt"
    content = {
        "model": reference.classifier(3, favourite=2),
        "class_to_index": {"yak": 0, "dog": 1, "cat": 2},
        "preprocessing": Preprocessing(32).to_dict(),
    }
    checkpoints.save(path, content)
    return path


def test_the_evaluation_compares_names_not_numbers(tmp_path, capsys, checkpoint):
    """Folders cat, dog, hen are numbers 0, 1, 2; in the checkpoint cat is 2, dog 1, hen unknown."""
    from inference_engine import evaluate_full_dataset

    for name, num in {"cat": 4, "dog": 3, "hen": 2}.items():
        for number in range(num):
            photo(tmp_path / f"photos/{name}/{number}.png")
    main(["image_folder", "--source", str(tmp_path / "photos"), "--out", str(tmp_path / "out"),
          "--checkpoint", str(checkpoint)])  # fmt: skip
    out = capsys.readouterr().out
    assert "1 classes of the test part are not known to the checkpoint: hen (2 photos)" in out
    assert "1 classes of the checkpoint have no photo: yak" in out
    (words,) = commands(out)
    assert words[1:5] == [scripts.INFERENCE, "evaluate", "--stage1-checkpoint", str(checkpoint)]
    summary = evaluate_full_dataset(
        tmp_path / "out/images",
        tmp_path / "out/annotations",
        stage1_checkpoint=checkpoint,
        stage2_folder=tmp_path / "none",
        out_dir=tmp_path / "evaluation",
        device="cpu",
        precision="fp32",
        num_workers=0,
        interval_resamples=0,
    )
    per_species = summary["stage1"]["per_species"]
    assert per_species["cat"] == {"num": 4, "correct": 4, "accuracy": 1.0}
    assert per_species["dog"]["num"] == 3 and per_species["dog"]["correct"] == 0
    assert summary["splits"]["test"]["stage1"]["overall"]["num"] == 7


@pytest.mark.slow  # a minute: three runs
def test_a_small_oxford_is_trained_and_evaluated(tmp_path, script, capsys):
    oxford(tmp_path / "pets", draw_photos=True)
    main(["oxford_pets", "--source", str(tmp_path / "pets"), "--out", str(tmp_path / "out")])
    (training, evaluation) = commands(capsys.readouterr().out)
    tiny = ["--image-size-px", 32, "--weights", "none", "--epochs", 1, "--device", "cpu",
            "--batch-size", 8, "--num-workers", 0, "--precision", "fp32"]  # fmt: skip
    runs = ["--runs-root", tmp_path / "runs"]
    done = script(training[1], [*training[2:], *tiny, *runs])
    assert done.code == 0, done.err
    assert "is that of oxford_pets in" in done.out
    run = tmp_path / "runs/oxford_pets/stage1"
    final = json.loads((run / "final.json").read_text(encoding="utf-8"))
    assert final["test_images"] == sum(row[3] for row in OXFORD_BREEDS.values())
    arguments = [*evaluation[2:], "--stage1-checkpoint", run / "best.pt", "--device", "cpu",
                 "--out-dir", tmp_path / "evaluation", "--precision", "fp32"]  # fmt: skip
    done = script(evaluation[1], arguments)
    assert done.code == 0, done.err
    summary = tmp_path / "evaluation/petface_eval_summary.json"
    parts = json.loads(summary.read_text(encoding="utf-8"))["splits"]
    assert [parts[name]["num_images"] for name in SPLITS] == [23, 2, 13]
