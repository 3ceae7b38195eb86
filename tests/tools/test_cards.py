"""The cards as a user makes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from petface.errors import UserError
from tests.report.test_cards import make_evaluation
from tools import cards

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cards", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_four_files_beside_the_evaluation_or_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    folder = make_evaluation(tmp_path)
    before = {path.name for path in folder.iterdir()}
    done = run("--evaluation", folder, "--license", "CC-0", "--owner", "Ann")
    assert done.returncode == 0, done.stderr
    names = {f"{card}_card.{suffix}" for card in ("model", "data") for suffix in ("md", "html")}
    assert {path.name for path in folder.iterdir()} == before | names
    text = (folder / "model_card.md").read_text(encoding="utf-8")
    assert "Licence: CC-0" in text and "> **Contact:** to be filled in" in text
    assert f"model_card: {folder / 'model_card.md'}\n" in done.stdout
    assert "missing: specialist cat: the checkpoint" in done.stdout
    page = (folder / "model_card.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "://" not in page and "<img" not in page
    monkeypatch.setattr(sys, "argv", ["cards", "--evaluation", str(folder), "--out", str(out)])
    cards.main()
    assert {path.name for path in out.iterdir()} == names


def test_a_wrong_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cards", "--evaluation", str(tmp_path)])
    with pytest.raises(UserError, match="run: python inference_engine.py evaluate"):
        cards.main()
