"""Which photos bulk prediction finds, and how a row is laid out; end_to_end has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from petface.errors import UserError
from petface.inference.predict import COLUMNS, _cells, find_photos


def test_photos_are_found_once_in_the_order_of_names_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "b/.hidden.png", "b/notes.txt", "b/no", "a.webp", "odd"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "b/.folder").mkdir()
    (tmp_path / "b/.folder/3.png").write_bytes(b"")
    (tmp_path / "b/folder.png").mkdir()
    (tmp_path / "b/folder.png/4.png").write_bytes(b"")
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere")
    named = [str(tmp_path / "odd"), str(tmp_path / "b/1.jpg"), str(tmp_path)]
    photos, left_out = find_photos(named)
    names = ["odd", "b/1.jpg", "a.webp", "b/2.PNG", "b/folder.png/4.png"]
    assert photos == [str(tmp_path / name) for name in names]
    # a file that is named is taken whatever its suffix; in a folder the suffix decides
    assert left_out == {"hidden": 1, "not an image suffix": 3, "not a regular file": 1}
    with pytest.raises(UserError, match="missing: no such file or folder"):
        find_photos([str(tmp_path / "missing")])


def test_what_is_not_known_is_an_empty_cell() -> None:
    entry = {"label": "cat", "topk": [("cat", 0.25)], "sure": True}
    answer = {
        "image": "a.png",
        "status": "ok",
        "species": entry,
        "attributes": {"gender": {**entry, "label": "male", "sure": None}},
    }
    row = dict(zip(COLUMNS, _cells(answer), strict=True))
    assert {name: cell for name, cell in row.items() if cell != ""} == {
        "image": "a.png", "status": "ok", "species_pred": "cat", "species_prob": "0.250000",
        "species_sure": "1", "gender_pred": "male", "gender_prob": "0.250000",
    }  # fmt: skip
    broken = {"image": "b", "status": "unreadable", "message": "m", "species": None}
    row = dict(zip(COLUMNS, _cells({**broken, "attributes": {}}), strict=True))
    assert [name for name, cell in row.items() if cell != ""] == ["image", "status", "message"]
