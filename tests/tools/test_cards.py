"""The cards as a user makes them; what they say is tested in tests/report."""

from __future__ import annotations

from tests.report.made_folders import make_evaluation


def test_two_cards_beside_the_evaluation_or_elsewhere(tmp_path, script) -> None:
    folder = make_evaluation(tmp_path / "evaluation")
    for out, flags in ((folder, []), (tmp_path / "out", ["--out", tmp_path / "out"])):
        done = script("tools/cards.py", ["--evaluation", folder, "--license", "CC-0", *flags])
        assert f"model_card: {out / 'model_card.md'}\n" in done.out, done.err
        assert "Licence: CC-0" in (out / "model_card.md").read_text(encoding="utf-8")
        assert (out / "data_card.md").is_file()
