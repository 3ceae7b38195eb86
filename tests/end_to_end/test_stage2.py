"""The stage-2 trainer as a user runs it, tiny; its figures computed again by other means."""

import csv
import json
import re

import numpy as np
import pandas
import pytest
import torch

import stage2_resnet_multi as stage2
from petface import taxonomy
from tests import naive, scripts
from tests.conftest import BOMB, EMPTY, TINY, TRUNCATED

BREEDS = ["Bulldog, Olde mix", "P. t. verus", "Plain"]
VOCABULARIES = {
    "cat": {
        "breed": BREEDS,
        "color1": ["Black", "White"],
        "color2": ["Seal", "Tabby"],
        "gender": ["female", "male"],
    },
    "chimp": {"breed": BREEDS, "gender": ["female", "male"]},
    "dog": {"breed": BREEDS},  # no gender is known: a head without a class
}
HEADS = [(species, head) for species, heads in VOCABULARIES.items() for head in heads]


@pytest.fixture(scope="module")
def folder(stage2_run):
    assert stage2_run.result.code == 0, stage2_run.result.err
    return stage2_run.folder


@pytest.fixture(scope="module")
def best(folder):
    return {
        name: torch.load(folder / name / f"{name}_best.pt", weights_only=True)
        for name in VOCABULARIES
    }


def read_confusion(path):
    """(class names, matrix) through csv, the names of rows and columns compared."""
    with path.open(newline="") as handle:
        header, *rows = csv.reader(handle)
    names = [row[0] for row in rows]
    assert header[1:] == names
    return names, np.array([row[1:] for row in rows], int)


def test_every_species_with_labels_has_its_specialist(folder, stage2_run):
    assert {path.name for path in folder.iterdir()} == set(VOCABULARIES)
    assert re.search(r"yak: no known label .* no specialist", stage2_run.result.out)
    for species, heads in VOCABULARIES.items():
        tables = {f"confusion_{part}_{head}.csv" for part in ("test", "all") for head in heads}
        tables |= {t.replace("confusion", "classification") for t in tables}
        tables |= {t.replace(".csv", ".txt") for t in tables if t.startswith("classification")}
        files = {p.name for p in (folder / species).iterdir() if p.suffix != ".png"}
        assert files == tables | {
            f"{species}_best.pt", f"{species}_last.pt", "metrics.csv", "errors.csv",
            "settings.toml", "environment.json", "final.json", "eval_summary_stage2.txt",
            "label_conflicts.csv", "report.html", "run.lock",
        }  # fmt: skip


@pytest.mark.parametrize("species", VOCABULARIES)
def test_best_holds_weights_and_vocabularies(best, species):
    assert best[species]["head_vocabs"] == VOCABULARIES[species]
    assert best[species]["species"] == species
    assert best[species]["preprocessing"]["size_px"] == 32
    for head in VOCABULARIES[species]:
        naive.specialist_network(best[species], head)  # strict: sizes fit, nothing is missing
    heads = {name.split(".")[1] for name in best[species]["model"] if name.startswith("heads.")}
    assert heads == set(VOCABULARIES[species])


@pytest.mark.parametrize("species", VOCABULARIES)
def test_every_head_is_calibrated_on_the_validation_part(folder, best, tree, stage2_run, species):
    fitted = best[species]["calibration"]
    final = json.loads((folder / species / "final.json").read_text())
    assert list(fitted) == list(final["calibration"]) == list(VOCABULARIES[species])
    truth, split = naive.labels(tree.annotations), naive.splits(tree.root)
    for head, entry in fitted.items():
        known = dict.fromkeys(("train", "val", "test"), 0)
        for name in naive.photos(tree.images):
            own, record, _ = name.split("/")
            if own == species and name not in (TRUNCATED, BOMB, EMPTY):
                known[split[own, record]] += head in truth.get((own, record), {})
        assert entry["num"] == known["val"]
        assert entry["temperature"] == 1.0 and entry["threshold"] is None  # too few photos
        measured = final["calibration"][head]
        assert measured["num"] == known["test"] and measured["fitted"] == entry
        assert final[f"test_{head}_ece_after"] == measured["ece_after"]
    assert "test_breed_answered_share" in final
    assert f"\n{species:11s} " in stage2_run.result.out  # a line of the table at the end


@pytest.mark.parametrize("species", VOCABULARIES)
def test_only_the_thawed_stages_moved(best, stage1_run, species):
    """layer4 in phase 1, layer3 too in phase 2; BatchNorm of frozen stages keeps its statistics."""
    begin = torch.load(stage1_run.folder / "best.pt", weights_only=True)["model"]
    now = best[species]["model"]
    for name, value in begin.items():
        if name.startswith("fc."):
            continue
        stage = name.split(".")[0]
        if stage not in ("layer3", "layer4"):
            assert torch.equal(now[f"body.{name}"], value), name
    assert not torch.equal(now["body.layer4.0.conv1.weight"], begin["layer4.0.conv1.weight"])


@pytest.mark.parametrize(("species", "head"), HEADS)
def test_confusion_tables_are_those_of_one_photo_at_a_time(folder, best, tree, species, head):
    vocabulary = VOCABULARIES[species][head]
    model = naive.specialist_network(best[species], head)
    truth, split = naive.labels(tree.annotations), naive.splits(tree.root)
    expected = {part: np.zeros((len(vocabulary),) * 2, int) for part in ("test", "all")}
    for name in naive.photos(tree.images):
        own, record, _ = name.split("/")
        label = truth.get((own, record), {}).get(head)
        if own != species or label is None or name in (TRUNCATED, BOMB, EMPTY):
            continue
        answer = int(naive.logits(model, naive.pixels(tree.images / name, 32)).argmax())
        for part in {split[own, record], "all"} & expected.keys():
            expected[part][vocabulary.index(label), answer] += 1
    for part, matrix in expected.items():
        names, found = read_confusion(folder / species / f"confusion_{part}_{head}.csv")
        assert names == vocabulary
        assert np.array_equal(found, matrix), part
    assert expected["all"].sum() > 0


def test_a_part_without_a_known_label_has_no_figure(folder):
    """Chimp's gender is known for one record, of the training split."""
    final = json.loads((folder / "chimp/final.json").read_text())
    assert final["test_gender_known"] == 0 and final["test_gender_accuracy"] is None
    _, matrix = read_confusion(folder / "chimp/confusion_all_gender.csv")
    assert matrix.sum() == 3 and matrix[1].sum() == 3  # three photos of one male


def test_the_phases_follow_each_other(folder):
    history = pandas.read_csv(folder / "cat/metrics.csv")
    assert history["phase"].tolist() == [1, 1, 2]
    assert history["epoch"].tolist() == [1, 2, 3]
    steps = 4  # 25 images in steps of at most 8
    rates = [(e + (steps - 1) / steps) / n for e, n in [(0, 2), (1, 2), (0, 1)]]
    expected = [base * (1 - t) for base, t in zip((1e-3, 1e-3, 3e-4), rates, strict=True)]
    assert history["learning_rate"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("species", VOCABULARIES)
def test_best_is_the_epoch_with_the_lowest_validation_loss_of_both_phases(folder, best, species):
    losses = pandas.read_csv(folder / species / "metrics.csv")["val_loss"]
    assert best[species]["figures"]["epoch"] == losses.idxmin() + 1
    assert best[species]["figures"]["val_loss"] == losses.min()


def test_failures_are_those_of_the_species(folder):
    names = {
        s: pandas.read_csv(folder / s / "errors.csv")["message"].tolist() for s in VOCABULARIES
    }
    assert [len(messages) for messages in names.values()] == [2, 0, 1]
    assert TRUNCATED in names["cat"][0] and BOMB in names["cat"][1] and EMPTY in names["dog"][0]


def snapshot(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def test_finished_specialists_are_left_alone(folder, stage2_flags, script):
    before = snapshot(folder)
    flags = [*stage2_flags, "--runs-root", folder.parent, "--run-name", folder.name]
    again = script(scripts.STAGE2, flags).checked()
    assert re.findall(r"^(\w+): finished before, left alone", again.out, re.M) == list(VOCABULARIES)
    one = script(scripts.STAGE2, [*flags, "--species", "dog"])
    assert one.code == 1 and "holds a finished run" in one.err
    assert snapshot(folder) == before


def test_several_species_are_trained_and_no_other(stage2_flags, script, tmp_path):
    flags = [*stage2_flags, "--runs-root", tmp_path, "--phase-epochs", 1, 1]
    script(scripts.STAGE2, [*flags, "--species", "dog", "chimp"]).checked()
    assert {path.name for path in (tmp_path / "stage2").iterdir()} == {"chimp", "dog"}
    # the next call trains only what is missing
    before = snapshot(tmp_path / "stage2")
    more = script(scripts.STAGE2, [*flags, "--species", "dog,cat", "--precision", "bf16"]).checked()
    assert "dog: finished before" in more.out and "== cat (2 of 2) ==" in more.out
    assert {p: s for p, s in snapshot(tmp_path / "stage2").items() if p in before} == before


@pytest.mark.parametrize("name", ["lion", "yak"])
def test_a_species_without_labels_is_refused_by_name(stage2_flags, script, tmp_path, name):
    done = script(scripts.STAGE2, [*stage2_flags, "--runs-root", tmp_path, "--species", name])
    scripts.assert_refused(done, f"SPECIES {name}: no known label", "cat, chimp, dog, yak")


def test_the_table_of_species_is_petfaces():
    for species, table in stage2.SPECIES_CONFIG.items():
        assert table == {head: head.title() for head in taxonomy.SPECIES_FEATURES[species]}
    assert stage2.SPECIES_CONFIG.keys() == taxonomy.SPECIES_FEATURES.keys()
    assert stage2.GENDER_MAP == taxonomy.GENDER_MAP


def test_columns_of_another_name_reach_the_checkpoint_and_the_evaluation(
    tree, stage1_run, script, tmp_path
):
    data = tree.copy(tmp_path / "data")
    text = (data.annotations / "cat.csv").read_text(encoding="utf-8")
    (data.annotations / "cat.csv").unlink()
    text = text.replace("Breed", "Rasse", 1).replace("Color1", "Farbe", 1)
    (data.annotations / "katzen.csv").write_text(text)
    aliases = tmp_path / "aliases.csv"
    aliases.write_text("species,feature,label,alias_of\ncat,breed,Plain,P. t. verus\n")
    columns = ["cat.file=katzen.csv", "cat.breed=Rasse", "cat.color1=Farbe"]
    weights = ["--weights", stage1_run.folder / "best.pt", "--runs-root", tmp_path]
    flags = [*data.flags, *TINY, "--normalize", "none", *weights, "--species", "cat"]
    flags += ["--phase-epochs", 1, 1]
    wrong = script(scripts.STAGE2, [*flags, "--columns", "cat.race=Rasse"])
    scripts.assert_refused(wrong, "SPECIES_CONFIG of cat: 'race'", code=2)
    script(scripts.STAGE2, [*flags, "--columns", *columns, "--aliases-file", aliases]).checked()
    best = torch.load(tmp_path / "stage2/cat/cat_best.pt", weights_only=True)
    breeds = ["Bulldog, Olde mix", "P. t. verus"]
    assert best["head_vocabs"]["breed"] == breeds
    assert list(best["head_vocabs"]) == ["breed", "color1", "color2", "gender"]
    assert best["labels"]["table"]["breed"] == "Rasse"
    # a bundle, the evaluation and the tools read labels as the specialist does
    stage1, out = ["--stage1-checkpoint", stage1_run.folder / "best.pt"], tmp_path / "out"
    models = [*stage1, "--stage2-folder", tmp_path / "stage2"]
    script("tools/export.py", [*data.flags, *models, "--out", out]).checked()
    tables = []
    for number, flags in enumerate(([*models, "--device", "cpu"], ["--stage1-checkpoint", out])):
        folder = tmp_path / f"evaluation{number}"
        script(scripts.INFERENCE, ["evaluate", *data.flags, *flags, "--out-dir", folder]).checked()
        tables.append(pandas.read_csv(folder / "petface_eval_per_image.csv"))
    cats = tables[0][tables[0]["species"] == "cat"]
    assert set(cats["breed_true"].dropna()) == set(breeds)
    assert set(cats["color1_true"].dropna()) == {"Black", "White"}
    for head in ("breed", "color1", "gender"):
        assert tables[1][f"{head}_true"].equals(tables[0][f"{head}_true"])
    flags = [*data.flags, "--stage2-folder", out, "--out", tmp_path / "tool"]
    script("tools/audit.py", flags).checked()
    classes = pandas.read_csv(tmp_path / "tool/classes.csv")
    cats = classes[(classes["species"] == "cat") & (classes["feature"] == "breed")]
    assert list(cats["class"]) == breeds
    finder = ["--checkpoint", stage1[1], "--species", "cat", "--features", "breed"]
    flags = [*data.flags, *models[2:], "--out", tmp_path / "tool", *finder]
    script("tools/find_label_errors.py", flags).checked()
    judged = json.loads((tmp_path / "tool/label_errors.json").read_text())["heads"]
    assert [head["num_known"] for head in judged] == [cats["records"].sum()]
