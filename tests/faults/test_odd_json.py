"""JSON that a script or tool reads and that is none, or holds other kinds: one line, its file."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from petface.data.splits import read_side_file
from petface.errors import UserError
from petface.evaluation.details import read_evaluation
from petface.resumable import ResumableTable
from tools import cards, show_evaluation

WHOLE = [
    b"", b"{", b"[]", b'"x"', b"null", b"NaN", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"),
]  # fmt: skip
INSIDE = [[], {}, "x", None, -1, float("nan"), 10**400, [[1]], {"a": {"b": {}}}]


@pytest.fixture
def read(request, tree, evaluation_run, tmp_path, monkeypatch):
    """Give a file, and what reads it."""
    folder = tmp_path / "evaluation"
    shutil.copytree(evaluation_run.folder, folder)
    summary, models = (folder / f"petface_eval_{name}.json" for name in ("summary", "models"))
    table, split = tmp_path / "a.csv.identity.json", tmp_path / "splits.json"
    table.write_text('{"model": {"x": 1}, "data": [1]}')
    for name in ("splits.csv", "splits.json"):
        shutil.copy(tree.root / name, tmp_path)

    def stop(_):
        raise UserError(f"{summary} was shown")

    monkeypatch.setattr(show_evaluation, "read_test_rows", stop)  # the picture takes its time

    def show():
        monkeypatch.setattr(sys, "argv", ["show", "--out-dir", str(folder)])
        show_evaluation.main()

    def write_cards():
        monkeypatch.setattr(sys, "argv", ["cards", "--evaluation", str(folder)])
        cards.main()

    def take_up():
        with ResumableTable(tmp_path / "a.csv", ("a",), {"model": {"x": 1}}):
            pass

    return {
        "show": (summary, show), "cards": (summary, write_cards),
        "models": (models, lambda: read_evaluation(folder)), "table": (table, take_up),
        "split": (split, lambda: read_side_file(tmp_path / "splits.csv")),
    }[request.param]  # fmt: skip


@pytest.mark.parametrize("read", ["show", "cards", "models", "table", "split"], indirect=True)
def test_odd_json_is_refused_with_its_file_or_does_no_harm(read):
    path, work = read
    good = json.loads(path.read_text())
    changed = [{**good, key: value} for key in good for value in INSIDE]
    changed += [{k: v for k, v in good.items() if k != key} for key in good]
    changed = changed[:: 5 if work.__name__ == "write_cards" else 1]  # two pages take their time
    for number, content in enumerate([*WHOLE, *(json.dumps(one).encode() for one in changed)]):
        path.write_bytes(content)
        try:
            work()
            assert number >= len(WHOLE), content[:50]
        except UserError as error:
            names = (path.name, path.name.partition(".identity")[0], path.parent.name)
            assert any(name in str(error) for name in names), content[:50]
