"""`inference_engine.py evaluate` against a naive loop over single photos, and after kills."""

import json
import shutil
from collections import Counter

import pytest
import torch

from inference_engine import evaluate_full_dataset
from petface.evaluation.details import read_evaluation
from petface.evaluation.summary import summarise
from tests import naive, scripts
from tests.conftest import BOMB, EMPTY, TRUNCATED
from tests.pretended_gpu import pretended_gpu
from tests.sameness import assert_same

BAD = {TRUNCATED: "unreadable", BOMB: "too_large", EMPTY: "unreadable"}
FILES = ("petface_eval_per_image.csv", "petface_eval_summary.json")
BESIDE = ("petface_eval_details.npy", "petface_eval_models.json")
CONFUSIONS = "confusion"


@pytest.fixture(scope="module")
def out(evaluation_run):
    assert evaluation_run.result.code == 0, evaluation_run.result.err
    return evaluation_run.folder


@pytest.fixture(scope="module")
def rows(out):
    return naive.rows_of(out / FILES[0])


@pytest.fixture(scope="module")
def summary(out):
    return json.loads((out / FILES[1]).read_text())


@pytest.fixture(scope="module")
def expected(tree, stage1_run, stage2_run):
    """What a loop over single photos answers: a dictionary per photo, cells as text."""
    stage1 = torch.load(stage1_run.folder / "best.pt", weights_only=True)
    species_model, classes = naive.species_network(stage1), list(stage1["class_to_index"])
    specialists = {}
    for path in stage2_run.folder.glob("*/*_best.pt"):
        content = torch.load(path, weights_only=True)
        specialists[path.parent.name] = {
            head: (naive.specialist_network(content, head), names)
            for head, names in content["head_vocabs"].items()
        }
    truth, split, answers = naive.labels(tree.annotations), naive.splits(tree.root), []
    for name in naive.photos(tree.images):
        species, record, _ = name.split("/")
        row = {"image": name, "species": species, "record": record, "split": split[species, record]}
        row |= {"contaminated": "0", "unknown_class": ""}
        row |= {"status": BAD.get(name, "ok"), "species_pred": "", "species_correct": ""}
        for head in naive.HEADS:
            row[f"{head}_true"] = truth.get((species, record), {}).get(head, "")
            row[f"{head}_pred"] = row[f"{head}_correct"] = ""
        answers.append(row)
        if name in BAD:
            continue
        image = naive.pixels(tree.images / name, 32)
        probabilities = naive.logits(species_model, image).softmax(0)
        row["species_pred"] = classes[int(probabilities.argmax())]
        row["species_prob"] = float(probabilities.max())
        row["species_correct"] = str(int(row["species_pred"] == species))
        if row["species_pred"] != species:
            continue
        if species not in specialists:
            row["status"] = "no_specialist"
        for head, (model, names) in specialists.get(species, {}).items():
            probabilities = naive.logits(model, image).softmax(0)
            row[f"{head}_pred"] = names[int(probabilities.argmax())]
            row[f"{head}_prob"] = float(probabilities.max())
            row["unknown_class"] += f" {head}" if row[f"{head}_true"] not in (*names, "") else ""
            if row[f"{head}_true"]:
                row[f"{head}_correct"] = str(int(row[f"{head}_pred"] == row[f"{head}_true"]))
    return answers


def test_every_photo_has_its_row_and_each_cell_is_that_of_the_naive_loop(rows, expected):
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    for row, reference in zip(rows, expected, strict=True):
        for column, cell in row.items():
            if column.endswith("_prob"):
                assert (cell == "") == (column not in reference), (row["image"], column)
                assert cell == "" or float(cell) == pytest.approx(reference[column], abs=2e-5)
            elif column == "message":  # why it cannot be read
                assert (cell != "") == (row["image"] in BAD), (row["image"], cell)
            else:
                assert cell == reference[column], (row["image"], column)


def test_the_tiny_models_answer_rightly_and_wrongly_so_that_the_test_means_something(expected):
    assert "1" in {row["species_correct"] for row in expected}
    for name in naive.HEADS:
        cells = {row[f"{name}_correct"] for row in expected} - {""}
        assert cells if name != "color" else not cells
    assert {row["breed_correct"] for row in expected} >= {"0", "1"}


def test_the_summary_is_that_of_the_files_beside_it(out, summary, expected):
    """tests/evaluation counts its metrics in loops; the rows are those of the naive loop."""
    assert summary == json.loads(json.dumps(summarise(read_evaluation(out))))
    assert summary["status_counts"] == Counter(row["status"] for row in expected)
    assert {"too_large", "unreadable", "no_specialist"} < summary["status_counts"].keys()
    assert summary["stage1"]["overall"]["num"] == len(expected) - len(BAD)


def test_what_is_printed_last_names_the_files(evaluation_run, out):
    assert " for: yak\n" in evaluation_run.result.out  # the species without a specialist
    block = evaluation_run.result.figures()
    assert block == {
        "per_image": str(out / FILES[0]),
        "summary": str(out / FILES[1]),
        "report": str(out / "report.html"),
    }
    names = sorted((*FILES, *BESIDE, CONFUSIONS, "report.html"))
    assert sorted(path.name for path in out.iterdir()) == names
    matrices = {path.stem for path in (out / CONFUSIONS).glob("*.csv")}
    assert "test_species" in matrices and any(name.startswith("test_breed_") for name in matrices)


def test_the_details_agree_with_the_table(out, rows):
    """The best answer is the table's, by name and probability; rank 1 means that it is right."""
    evaluation = read_evaluation(out)
    num_asked = num_right = 0
    for row, detail in zip(rows, evaluation.details, strict=True):
        for head in ("species", *naive.HEADS):
            entry = detail[head]
            best, names = int(entry["top"][0]), evaluation.class_names(head, row["species"])
            assert (best >= 0) == (row[f"{head}_pred"] != "")
            if best < 0:
                assert entry["rank"] == 0
                continue
            assert names[best] == row[f"{head}_pred"]
            assert f"{entry['top_prob'][0]:.6f}" == row[f"{head}_prob"]
            true = row["species"] if head == "species" else row[f"{head}_true"]
            assert (entry["rank"] == 0) == (true == "")
            assert (entry["rank"] == 1) == (row[f"{head}_correct"] == "1")
            num_asked, num_right = num_asked + 1, num_right + int(entry["rank"] == 1)
    assert num_asked > num_right > 50


@pytest.fixture
def evaluate(script, evaluation_flags):
    return lambda out, hook=None, *more: script(
        scripts.INFERENCE, [*evaluation_flags, "--out-dir", out, *more], hook
    )


@pytest.mark.slow  # two processes per species are started and ended
def test_worker_processes_write_the_same_bytes(out, evaluate, tmp_path):
    evaluate(tmp_path / "helped", None, "--num-workers", 2).checked()
    assert_same(out, tmp_path / "helped")


def test_kills_at_any_row_change_no_byte(out, evaluate, tmp_path):
    """Six kills of one evaluation, one after the other, at different places in the table."""
    target = tmp_path / "killed"
    hooks = [
        scripts.KillWhileWritingRows(1, 0.5),  # in the header
        scripts.KillWhileWritingRows(3, 1.0),  # after two whole batches
        scripts.KillWhileWritingRows(2, 0.4),  # one batch more, and a torn one
        scripts.KillWhileWritingRows(4, 0.0),
        scripts.kill_before_call("petface.files", "write_json", 3),  # rows whole, no summary yet
        scripts.kill_before_call("petface.files", "write_csv", 3),  # after two of the matrices
    ]
    sizes = []
    for hook in hooks:
        done = evaluate(target, hook)
        assert done.code == -9, (hook, done.err)
        assert not (target / FILES[0]).exists()
        sizes.append((target / f"{FILES[0]}.unfinished").stat().st_size)
    assert sizes == sorted(sizes) and len(set(sizes[:5])) == 5, (
        "each run went on where the last ended"
    )
    assert sizes[-1] == (out / FILES[0]).stat().st_size
    done = evaluate(target).checked()
    assert_same(out, target)


def test_an_unfinished_table_of_other_models_or_arithmetic_is_not_continued(
    evaluate, tmp_path, stage1_run
):
    target = tmp_path / "mixed"
    assert evaluate(target, scripts.KillWhileWritingRows(3, 1.0)).code == -9
    models = ["--stage1-checkpoint", stage1_run.folder / "last.pt"]
    for flags in (models, ["--tta", "flip"], ["--precision", "bf16"], ["--batch-size", 7]):
        scripts.assert_refused(evaluate(target, None, *flags), "begun with other checkpoints")


def test_a_finished_evaluation_is_not_overwritten_without_force(out, evaluate, tmp_path):
    shutil.copytree(out, tmp_path / "done")
    refused = evaluate(tmp_path / "done")
    assert refused.code == 1 and "finished table" in refused.err and "--force" in refused.err
    assert_same(out, tmp_path / "done")
    evaluate(tmp_path / "done", None, "--force").checked()
    assert_same(out, tmp_path / "done")


def test_a_photo_that_breaks_in_between_changes_its_own_row_alone(
    tree, rows, tmp_path, script, evaluation_flags
):
    """The rows of all others stay equal, cell by cell."""
    broken = tree.copy(tmp_path / "data")
    victim = next(row["image"] for row in rows if row["breed_correct"] == "1")
    (broken.images / victim).write_bytes(b"<html>not found</html>")
    flags = [f for f in evaluation_flags if f not in (tree.images, tree.annotations)]
    flags = [f for f in flags if f not in ("--images-root", "--annotations-root")]
    script(scripts.INFERENCE, [*flags, *broken.flags, "--out-dir", tmp_path / "out"]).checked()
    for before, now in zip(rows, naive.rows_of(tmp_path / "out" / FILES[0]), strict=True):
        if now["image"] == victim:
            assert now["status"] == "unreadable" and now["species_pred"] == ""
            continue
        for column in before:
            if column.endswith("_prob") and before[column]:
                # the batch of the victim is one smaller, which moves the last digits
                assert float(now[column]) == pytest.approx(float(before[column]), abs=1e-5)
            else:
                assert now[column] == before[column]


def test_on_a_gpu_a_slice_goes_up_once_and_nobody_waits_before_its_rows_are_written(
    tree, rows, stage1_run, stage2_run, tmp_path
):
    """But for what the networks upload when they are loaded."""
    with pretended_gpu() as gpu:
        evaluate_full_dataset(
            tree.images,
            tree.annotations,
            stage1_checkpoint=stage1_run.folder / "best.pt",
            stage2_folder=stage2_run.folder,
            out_dir=tmp_path,
            device="cuda",
            precision="fp32",
            batch_size=8,
            num_workers=0,
        )
    num_slices = sum(-(-num // 8) for num in Counter(row["species"] for row in rows).values())
    wanted = {"waits": 0, "pageable": 0, "uploads": num_slices, "later": num_slices}
    for kind, num in wanted.items():
        counts = getattr(gpu, kind).items()
        lines = {k: n for k, n in counts if "model.to(" not in k and "tensor(values)" not in k}
        assert sum(lines.values()) == num, (kind, lines)
    for one, other in zip(naive.rows_of(tmp_path / FILES[0]), rows, strict=True):
        assert [one[k] for k in one if "_prob" not in k] == [
            other[k] for k in one if "_prob" not in k
        ]
