"""The cards say what the files say, "not measured" elsewhere, and the caveats that apply."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from petface import files
from petface.data.dataset import load_dataset
from petface.errors import UserError
from petface.evaluation.details import MODELS, PER_IMAGE, SUMMARY
from petface.models import checkpoints
from petface.report.card_facts import read_facts
from petface.report.cards import model_card
from petface.report.caveats import caveats
from petface.report.data_card import class_counts, data_card
from petface.report.document import to_markdown, to_page
from tests.report.test_document import unescaped

NOBODY = {"Owner": "", "Licence": "", "Contact": ""}
BREEDS = ["Manx|cat", "<script>x</script>", "`Rex`\nline"]


def make_data(root: Path) -> Path:
    """Three species: 8 cats, 4 dogs, 2 emus without labels; 1 to 3 photos each."""
    for species, num in (("cat", 8), ("dog", 4), ("emu", 2)):
        for number in range(num):
            folder = root / "images" / species / f"{number:06d}"
            folder.mkdir(parents=True)
            for k in range(1 + number % 3):
                Image.new("RGB", (8, 8), (9 * number, k, 0)).save(folder / f"{k}.png")
    names = [BREEDS[0], BREEDS[0], BREEDS[0], BREEDS[0], BREEDS[0], BREEDS[1], BREEDS[2], "unknown"]
    rows = [(number, name) for number, name in enumerate(names)]
    files.write_csv(root / "annotations/cat.csv", ("Name", "Breed"), [*rows, (0, BREEDS[1])])
    files.write_csv(root / "annotations/dog.csv", ("Name", "Breed"), [(0, "Pug"), (1, "Mix")])
    load_dataset(root / "images", root / "annotations")  # makes the split
    return root


def figure(num: int, correct: int) -> dict[str, Any]:
    return {"num": num, "correct": correct, "accuracy": correct / num}


def make_summary() -> dict[str, Any]:
    species = figure(250, 240) | {"interval_95": [0.93, 0.98], "num_records": 120}
    species |= {"per_record": figure(120, 117), "balanced_accuracy": 0.91}
    breed = {
        "conditional": figure(80, 60) | {"interval_95": [0.62, 0.85], "num_records": 40},
        "end_to_end": figure(90, 60) | {"interval_95": [0.55, 0.77]},
        "per_record": figure(40, 31), "balanced_accuracy": 0.4321, "majority_baseline": 0.60,
    }  # fmt: skip
    part = lambda num, right: {  # noqa: E731
        "num_images": num + 5,
        "stage1": {"overall": figure(num, right), "per_species": {"cat": figure(num, right)}},
    }
    return {
        "num_images": 3210, "status_counts": {"ok": 3204, "unreadable": 6},
        "splits": {"train": part(2600, 2599), "val": part(300, 290), "test": part(250, 240)},
        "test": {"species": species | {"majority_baseline": 0.365}, "features": {"breed": breed},
                 "per_species": {"cat": {"breed": breed}}},
    }  # fmt: skip


def make_evaluation(root: Path) -> Path:
    """An evaluation with data, checkpoints and run folders behind it."""
    data, run = make_data(root / "data"), root / "runs/stage1"
    content = {"kind": "stage1", "backbone": "resnet18", "pretrained": "random"}
    content |= {"figures": {"epoch": 7}, "model": {"w": torch.zeros(30, 41), "n": torch.tensor(3)}}
    checkpoints.save(run / "best.pt", content)
    fitted = {"temperature": 1.2, "threshold": 0.5, "conformal_quantile": 0.1}
    measured = {"num": 250, "ece_before": 0.0811, "ece_after": 0.0322, "coverage": 0.875,
                "accuracy": 0.9531, "conformal_coverage": 0.902, "fitted": fitted}  # fmt: skip
    final = {"epochs": 9, "best_epoch": 7, "train_minutes": 12.34,
             "calibration": {"species": measured}}  # fmt: skip
    files.write_json(run / "final.json", final)
    files.write_json(run / "environment.json", {"packages": {"torch": "9.8.7"}, "gpu": "X100"})
    (run / "settings.toml").write_text('EPOCHS = 9\nLR = 0.00123\nTAIL_MODE = "quantile"\n')
    folder = root / "runs/evaluation"
    dataset = load_dataset(data / "images", data / "annotations")
    described = {
        "path": "runs/stage1/best.pt", "sha256": files.sha256_of_file(run / "best.pt"),
        "preprocessing": {"size_px": 96, "resize": "stretch", "mean": [0.1, 0.2, 0.3],
                          "std": [1, 1, 1]},
        "heads": {"species": ["cat", "dog", "emu"]},
    }  # fmt: skip
    cat = {"path": "runs/stage2/cat/cat_best.pt", "sha256": "ab" * 32, "heads": {"breed": BREEDS}}
    models = {"stage1": described, "specialists": {"cat": cat}, "images_root": "data/images",
              "annotations_root": "data/annotations", "splits_file": "", "precision": "bf16",
              "dataset": dataset.fingerprint(), "device": "cpu"}  # fmt: skip
    files.write_json(folder / MODELS, models)
    files.write_json(folder / SUMMARY, make_summary())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_evaluation(tmp_path)


def cards(folder: Path, people: dict[str, str] = NOBODY, **options: Any) -> tuple[str, str]:
    """Both cards as Markdown; their pages must hold the same texts."""
    facts = read_facts(folder, **options)
    classes = class_counts(facts.dataset)
    made = [card(facts, classes, people) for card in (model_card, data_card)]
    for card in made:
        assert "<script>" not in to_page(card)
    return to_markdown(made[0]), to_markdown(made[1])


def tables(markdown: str) -> dict[str, list[str]]:
    """Read every table row back: first cell -> other cells; later tables win."""
    found = {}
    for line in markdown.splitlines():
        if line.startswith("| "):
            cells = [unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[cells[0]] = cells[1:]
    return found


def section(markdown: str, title: str) -> str:
    return re.split(r"\n##+ ", markdown.split(f"## {title}\n")[1])[0]


def test_the_figures_are_those_of_the_summary(folder: Path) -> None:
    text, _ = cards(folder)
    test = json.loads((folder / SUMMARY).read_text())["test"]
    rows = tables(section(text, "Test part, in %"))
    for head, entry in (("species", test["species"]), ("breed", test["features"]["breed"])):
        main = entry.get("conditional", entry)
        num, animals, accuracy, interval, end, fused, balanced, majority = rows[head]
        assert (int(num), int(animals)) == (main["num"], main["num_records"])
        assert float(accuracy) == pytest.approx(main["accuracy"] * 100, abs=0.05)
        assert [float(v) for v in interval.split(" to ")] == pytest.approx(
            [v * 100 for v in main["interval_95"]], abs=0.05
        )
        assert float(fused) == pytest.approx(entry["per_record"]["accuracy"] * 100, abs=0.05)
        assert float(balanced) == pytest.approx(entry["balanced_accuracy"] * 100, abs=0.05)
        assert float(majority) == pytest.approx(entry["majority_baseline"] * 100, abs=0.05)
    assert float(rows["breed"][4]) == pytest.approx(100 * 60 / 90, abs=0.05)
    assert tables(section(text, "Test part per species, in %"))["cat"] == [
        "250", "96.0", "75.0 (80)"
    ]  # fmt: skip
    confidence = tables(section(text, "Confidence: calibration before and after, on the test part"))
    assert confidence["all"] == ["species", "250", "0.0811", "0.0322", "87.5", "95.3", "90.2"]
    fit = tables(section(text, "Species on the parts that were learned from: fit, not accuracy"))
    assert fit["train"] == ["2,600", "100.0"]


def test_the_facts_are_those_of_checkpoint_run_and_evaluation(folder: Path) -> None:
    text, _ = cards(folder)
    rows, models = tables(text), json.loads((folder / MODELS).read_text())
    assert rows["sha-256"] == [models["stage1"]["sha256"]]
    assert rows["network"] == ["resnet18"] and rows["start weights"] == ["random"]
    assert rows["numbers in the network"] == ["1,230"] and rows["checkpoint format"] == ["1"]
    assert rows["input"] == ["RGB, 96 x 96 pixels (stretch)"]
    assert rows["epochs trained, best"] == ["9, 7"] and rows["training minutes"] == ["12.3"]
    assert rows["software"] == ["torch 9.8.7"] and rows["trained on"] == ["X100"]
    assert rows["classes"] == ["cat, dog, emu"]
    assert rows["LR"][0] == "0.00123" and rows["EPOCHS"][0] == "9"
    assert rows["images in all"] == ["3,210"] and rows["images of the test part"] == ["255"]
    assert rows["fingerprint of images, labels and split"] == [models["dataset"]]
    assert rows["states of the images"] == ["ok 3,204, unreadable 6"]
    assert rows["cat"][-1] in text


def test_the_data_card_counts_the_data(folder: Path, tmp_path: Path) -> None:
    _, text = cards(folder)
    species = tables(section(text, "Species"))
    for name in ("cat", "dog", "emu"):
        records = list((tmp_path / "data/images" / name).iterdir())
        photos = sum(len(list(record.iterdir())) for record in records)
        assert species[name][:2] == [str(len(records)), str(photos)]
        assert sum(map(int, species[name][3:])) == len(records)
    assert species["all"][:2] == ["14", "25"]
    assert section(text, "Photos per record").split("\n")[3:6] == [
        "| 1 | 6 |", "| 2 | 5 |", "| 3 | 3 |"
    ]  # fmt: skip
    labels = tables(section(text, "Labels"))
    assert labels["cat"][:4] == ["breed", "3", "6", "75.0"]  # one contradicts, one is unknown
    assert labels["dog"][:4] == ["breed", "2", "2", "50.0"]
    assert "contradict each other in a label: 1." in text
    assert "Unreadable photos, duplicates and odd photos: not measured" in text


def test_an_audit_fills_in_what_it_found(folder: Path, tmp_path: Path) -> None:
    audit = {"photos": 25, "looked_at": 20, "unreadable": 3, "too_large": 0,
             "duplicates": {"exact": 4, "exact_across_splits": 2, "near": 1},
             "issues": {"label_conflict": 1}}  # fmt: skip
    files.write_json(tmp_path / "audit/audit.json", audit)
    _, text = cards(folder, audit=tmp_path / "audit")
    rows = tables(section(text, "Errors, noise and duplicates"))
    assert rows["photos looked at"] == ["20"] and rows["unreadable"] == ["3"]
    assert rows["duplicates, exact across splits"] == ["2"] and rows["label conflict"] == ["1"]
    assert rows["duplicates, near across splits"] == ["not measured"]
    with pytest.raises(UserError, match="holds no audit.json; run: python -m tools.audit"):
        cards(folder, audit=tmp_path)


def test_hostile_labels_stay_labels(folder: Path) -> None:
    for text in cards(folder, {"Owner": "A <b>|`x`\n# y", "Licence": "", "Contact": ""}):
        assert "<script>" not in text and "\n# y" not in text
        assert "A \\<b\\>\\|\\`x\\`\\\\n\\# y" in text
        assert text.count("> **Licence:** to be filled in") == 1
        assert text.count("to be filled in") == 2
    assert r"\<script\>x\</script\>" in cards(folder)[0]  # a class without a test record


def test_absent_files_are_said_and_nothing_is_made_up(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/stage1/best.pt").unlink()
    (tmp_path / "data/splits.csv").rename(tmp_path / "away.csv")
    files.write_json(folder / SUMMARY, {})
    text, data = cards(folder)
    rows = tables(text)
    for fact in ("network", "numbers in the network", "trained on", "training minutes", "software",
                 "images in all", "states of the images"):  # fmt: skip
        assert rows[fact] == ["not measured"], fact
    assert "Test figures: not measured." in text and "Calibration: not measured." in text
    assert "the checkpoint runs/stage1/best.pt is not there any more" in text
    assert "nothing was counted" not in data and "splits.csv is not there" in data
    assert "record, label and part: not measured" in data
    assert not (tmp_path / "data/splits.csv").exists(), "a card must not make a split"


def test_files_that_changed_since_are_said(folder: Path, tmp_path: Path) -> None:
    assert not any("the data have changed" in text for text in cards(folder))
    checkpoints.save(tmp_path / "runs/stage1/best.pt", {"model": {}})
    Image.new("RGB", (8, 8)).save(tmp_path / "data/images/emu/000000/9.png")
    text, data = cards(folder)
    assert "best.pt is no longer the checkpoint that was evaluated" in text
    assert tables(text)["network"] == ["not measured"]
    assert "the data have changed since the evaluation" in data


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"holds no {MODELS}; run: .*evaluate"):
        read_facts(tmp_path)
    (tmp_path / PER_IMAGE).write_text("")
    with pytest.raises(UserError, match="--force"):
        read_facts(tmp_path)
    for name in (MODELS, SUMMARY):
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_facts(tmp_path)


def said(folder: Path, change: Any = None, final: Any = None) -> str:
    """The caveats after a change of the summary, or of final.json."""
    for path, edit in ((folder / SUMMARY, change), (folder.parent / "stage1/final.json", final)):
        content = json.loads(path.read_text())
        if edit:
            edit(content)
            files.write_json(path, content)
    facts = read_facts(folder)
    return "\n".join(caveats(facts, class_counts(facts.dataset)))


CAVEATS = {
    "fewer than 100 photos of breed (80)": lambda s: s["test"]["features"]["breed"][
        "conditional"].update(num=100),
    "breed is not shown to be better": lambda s: s["test"]["features"]["breed"].update(
        majority_baseline=0.5),
    "in no accuracy: 6 unreadable": lambda s: s["status_counts"].update(unreadable=0),
}  # fmt: skip


@pytest.mark.parametrize("caveat", CAVEATS)
def test_a_caveat_of_the_summary_goes_with_its_reason(folder: Path, caveat: str) -> None:
    assert caveat in said(folder)
    assert caveat not in said(folder, CAVEATS[caveat])


def test_caveats_of_the_runs(folder: Path) -> None:
    first = said(folder)
    assert (
        "they are not accuracy" in first and "no known species is noticed is not measured" in first
    )
    assert "have no test record" in first
    for absent in ("Calibration made", "no answer counts as sure", "species is not shown"):
        assert absent not in first
    measured: dict[str, Any] = {}

    def worse(final: dict[str, Any]) -> None:
        measured.update(copy.deepcopy(final["calibration"]["species"]))
        final["calibration"]["species"]["ece_after"] = 0.09
        final["calibration"]["species"]["fitted"]["threshold"] = None
        final["guard"] = {"false_alarm_frac": 0.048, "caught": {"noise_frac": 0.91}}

    second = said(folder, final=worse)
    assert "larger for species" in second and "no answer counts as sure: species" in second
    assert "no known species is noticed" not in second
    rows = tables(section(cards(folder)[0], "Photos of no known species"))
    assert rows["false alarm frac"] == ["0.048"] and rows["caught noise frac"] == ["0.91"]
    assert "is not measured" in said(folder, final=lambda f: f.pop("calibration"))


def test_newer_figures_come_before_older_ones(folder: Path) -> None:
    summary = make_summary()
    newer = {"num": 80, "accuracy": 0.75, "top3": 0.8765, "top5": None, "ece": 0.0432,
             "interval_95": [0.61, 0.86], "end_to_end": figure(90, 60)}  # fmt: skip
    summary["figures"] = {"test": {"breed": newer}}
    files.write_json(folder / SUMMARY, summary)
    text, _ = cards(folder)
    ranks = tables(section(text, "Test part: ranks and probabilities"))
    assert ranks["breed"][:3] == ["87.6", "undefined", "not measured"]
    assert ranks["breed"][-1] == "0.0432" and "species" not in ranks
    rows = tables(section(text, "Test part, in %"))
    assert rows["breed"][3] == "61.0 to 86.0" and rows["breed"][5] == "77.5"
