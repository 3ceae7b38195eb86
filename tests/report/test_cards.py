"""The cards say what the files say, and the caveats that apply."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from petface.errors import UserError
from petface.report.cards import write_cards
from petface.report.page import markdown_text
from tests.report.made_folders import HOSTILE, make_evaluation, make_run

NOBODY = {"Owner": "", "Licence": "", "Contact": "me_and_you"}
AUDIT = {
    "photos": 12, "records": 7, "species": 2, "looked_at": 11, "unreadable": 1, "too_large": 0,
    "duplicates": {"exact": 3, "exact_across_splits": 2}, "issues": {"label_conflict": 4},
    "per_species": {"cat": {"records": 5, "photos": 8,
                            "records_per_split": {"train": 3, "val": 1, "test": 1}}},
    "heads": {"cat": {"breed": {"classes": 6, "records_known": 4, "unknown_frac": 0.2}}},
}  # fmt: skip


def cards(folder, **more) -> tuple[str, str]:
    written = write_cards(folder, people=NOBODY, **more)
    assert [path.name for path in written] == ["model_card.md", "data_card.md"]
    model, data = (path.read_text(encoding="utf-8") for path in written)
    return model, data


def test_the_headline_comes_first_with_its_interval_and_baseline(tmp_path):
    model, data = cards(make_evaluation(tmp_path / "e"))
    start = " ".join(model.split("\n- ")[0].split("\n\n")[1].split())
    assert start == (
        "**91.9 % of 120 test photos get the right species** (95 %: 86.9 - 96.9; majority "
        "baseline: 22.2 %)"
    )
    assert "- breed, end to end: 57.6 %" in model
    assert "- Owner: TO BE FILLED IN" in model and r"- Contact: me\_and\_you" in model
    row = "| breed | 100 | 50 | 61.6 | 56.6 - 66.6 | 22.2 | 50.1 | 57.6 | 73.7 | 49.1 | 93.2 |"
    assert row in model
    assert "- 4 images have the status unreadable." in model
    assert "not shown to be better" not in model and "only" not in model.split("## Intended")[0]
    assert data.splitlines()[2].startswith("**1234 photos") and "not measured" in data


def test_caveats_are_found_in_the_numbers(tmp_path):
    folder = make_evaluation(tmp_path / "e")
    path = folder / "petface_eval_summary.json"
    summary = json.loads(path.read_text())
    summary["figures"]["test"]["breed"]["majority_baseline"] = 0.55
    summary["figures"]["test"]["species"]["num"] = 99
    path.write_text(json.dumps(summary))
    model, _ = cards(folder)
    assert "- breed is not shown to be better than always" in model
    assert "- species: only 99 test photos" in model and "species is not shown" not in model


@pytest.mark.parametrize("is_known", [False, True], ids=["another file", "the evaluated one"])
def test_an_audit_is_counted_and_the_checkpoint_must_be_the_evaluated_one(tmp_path, is_known):
    folder = make_evaluation(tmp_path / "e")
    run = make_run(tmp_path / "run")
    (run / "best.pt").write_bytes(b"weights")
    models = json.loads((folder / "petface_eval_models.json").read_text())
    sha256 = hashlib.sha256(b"weights" if is_known else b"others").hexdigest()
    models["stage1"] |= {"path": str(run / "best.pt"), "sha256": sha256}
    (folder / "petface_eval_models.json").write_text(json.dumps(models))
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    model, data = cards(folder, audit=str(tmp_path), out=tmp_path)
    assert ("another file" in model) != is_known
    for cell in (sha256, "90 s", "128"):  # the batch by default
        assert (f"| {cell} |" in model) == is_known
    assert "| cat | 5 | 8 | 3 | 1 | 1 |" in data and "| cat | breed | 6 | 4 | 20.0 |" in data
    assert "- Duplicates, exact across splits: 2" in data and "- label conflict: 4" in data


def test_names_are_shown_and_never_obeyed(tmp_path):
    model, _ = cards(make_evaluation(tmp_path / "e", HOSTILE))
    assert "<script>" not in model and "\u202e" not in model
    for name in HOSTILE:
        shown = markdown_text(name)
        assert "\n" not in shown and not re.search(r"(?<!\\)[<>|*_`$&#]", shown)
    assert markdown_text("- x") == r"\- x" and markdown_text("1. x") == r"1\. x"
    assert markdown_text("-0.5") == "-0.5"


def test_an_identity_run_has_a_card_that_says_what_it_is_not_for(tmp_path):
    both = {"verification": {"num_pairs": 1662, "auc": 0.925, "auc_interval_95": [0.88, 0.95]},
            "reidentification": {"num_queries": 290, "top1": 0.524}}  # fmt: skip
    summary = both | {"network": "best.pt", "data": "60d3", "official_lists": False,
                      "left_out": {"pairs_of_copies": 20}}  # fmt: skip
    more = {"open_set": {"threshold": 0.58, "found": 0.338, "strangers_accepted": 0.117},
            "false_match_rate": 0.01, "per_species": {"<b>cat</b>": both}}  # fmt: skip
    always = ("AUC 92.5 % over 1662 pairs** (95 %: 88.0 - 95.0)", "52.4 % of 290 photos find",
              "(95 %: not measured)", "pairs of copies: 20", "handing out a found one")  # fmt: skip
    others = "N = 100: 63.4 %", "| 0.58 | 33.8 | 11.7 |", r"\<b\>cat\</b\> | 1,662 | 92.5 |"
    for folder, told in ((tmp_path, {}), (make_evaluation(tmp_path / "e"), more)):
        (folder / "identity_summary.json").write_text(json.dumps(summary | told))
        *beside, path = write_cards(folder, people=NOBODY)
        assert path.name == "identity_card.md" and len(beside) == 2 * bool(told)
        shown = " ".join(path.read_text(encoding="utf-8").split())
        assert [words for words in (*always, *others) if words not in shown] == [
            words for words in others if not told
        ]


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished evaluation"):
        cards(tmp_path)
    with pytest.raises(UserError, match=r"holds no audit\.json"):
        cards(make_evaluation(tmp_path / "e"), audit=str(tmp_path))
