"""The picture of a run: what is drawn where, and what happens without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from petface.report.curves import draw_curves

HISTORY = [
    {
        "epoch": epoch,
        "phase": int(epoch > 2),
        "train_loss": 1 / epoch,
        "val_loss": None if epoch == 2 else 2 / epoch,
        "val_accuracy_frac": epoch / 9,
        "learning_rate": 0.1,
        "duration_s": 3.0,
    }
    for epoch in range(1, 5)
]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list:
    """The panels of each picture, as matplotlib holds them when it is saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    save, seen = figure.savefig, []

    def remember(self, *arguments, **options):
        seen.extend(self.axes)
        return save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", remember)
    return seen


def test_lines_and_phases(tmp_path: Path, axes: list) -> None:
    assert draw_curves(HISTORY, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height
    drawn = {
        panel.get_title(): {
            line.get_label(): list(line.get_ydata())
            for line in panel.lines
            if len(line.get_xdata()) == 4
        }
        for panel in axes
    }
    assert list(drawn) == ["loss", "share right", "learning rate"]
    assert drawn["loss"]["train loss"] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert drawn["loss"]["val loss"] == [2, None, 2 / 3, 2 / 4]  # not measured: a gap
    assert drawn["share right"] == {"val accuracy": [1 / 9, 2 / 9, 3 / 9, 4 / 9]}
    assert drawn["learning rate"] == {"learning rate": [0.1] * 4}
    for panel in axes:
        (change,) = (line for line in panel.lines if len(line.get_xdata()) == 2)
        assert list(change.get_xdata()) == [2.5, 2.5]  # between the phases


@pytest.mark.parametrize("num_epochs", [0, 1])
def test_short_runs(num_epochs: int, tmp_path: Path, axes: list) -> None:
    assert draw_curves(HISTORY[:num_epochs], tmp_path / "curves.png")
    assert len(axes) == 3 and (tmp_path / "curves.png").stat().st_size > 0


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_curves(HISTORY, tmp_path / "curves.png")
    told = capsys.readouterr().out
    assert "matplotlib is missing" in told and 'python -m pip install ".[report]"' in told
    assert not list(tmp_path.iterdir())
