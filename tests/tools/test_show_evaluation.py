"""The held-out table and the picture of a finished evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageColor

from petface import files
from petface.data.images import decode
from petface.errors import UserError
from petface.evaluation.details import PER_IMAGE, SUMMARY, read_evaluation
from petface.evaluation.summary import describe_summary, summarise
from tests.evaluation.made_evaluation import make_evaluation
from tools import show_evaluation


def test_the_table_is_printed_and_answers_are_drawn_in_their_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out-dir", str(tmp_path), "--images-root", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["tools.show_evaluation", *flags])
    with pytest.raises(UserError, match="holds no finished evaluation; run: "):
        show_evaluation.main()
    make_evaluation(tmp_path)
    table = (tmp_path / PER_IMAGE).read_text(encoding="utf-8")
    (tmp_path / PER_IMAGE).write_text(table.replace("x\n,.png", "x.png"), encoding="utf-8")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "x.png")
    summary = summarise(read_evaluation(tmp_path))
    files.write_json(tmp_path / SUMMARY, summary)
    show_evaluation.main()
    shown = capsys.readouterr().out
    assert shown.startswith(describe_summary(summary)) and "strip.png" in shown
    colors = set(map(tuple, decode(tmp_path / "strip.png").reshape(-1, 3).tolist()))
    for kind in ("right", "wrong", "pale"):
        assert ImageColor.getrgb(show_evaluation.COLORS[kind]) in colors
    assert any(blue > 240 and red < 20 for red, _, blue in colors)  # the photos
