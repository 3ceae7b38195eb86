"""The cards as a user makes them; what they say is tested in tests/report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.report.made_folders import make_evaluation

ROOT = Path(__file__).parent.parent.parent


def test_two_cards_beside_the_evaluation_or_elsewhere(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "evaluation")
    for out, flags in ((folder, []), (tmp_path / "out", ["--out", str(tmp_path / "out")])):
        command = ["-m", "tools.cards", "--evaluation", str(folder), "--license", "CC-0", *flags]
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert f"model_card: {out / 'model_card.md'}\n" in done.stdout
        assert "Licence: CC-0" in (out / "model_card.md").read_text(encoding="utf-8")
        assert (out / "data_card.md").is_file()
