"""Which photos bulk prediction finds; end_to_end has the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from petface.errors import UserError
from petface.inference.predict import find_photos


def test_photos_are_found_once_in_the_order_of_names_and_the_rest_is_counted(
    tmp_path: Path,
) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "b/.hidden.png", "b/notes.txt", "b/no", "a.webp", "odd"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    caf = os.fsdecode(b"b/caf\xe9.png")  # no UTF-8
    (tmp_path / caf).write_bytes(b"")
    os.mkfifo(tmp_path / "b/pipe.png")
    (tmp_path / "b/.folder").mkdir()
    (tmp_path / "b/.folder/3.png").write_bytes(b"")
    (tmp_path / "b/folder.png").mkdir()
    (tmp_path / "b/folder.png/4.png").write_bytes(b"")
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b/gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "store/c").mkdir(parents=True)
    (tmp_path / "store/c/5.png").write_bytes(b"")
    (tmp_path / "b/linked").symlink_to(tmp_path / "store")
    (tmp_path / "store/c/back").symlink_to(tmp_path / "b")  # a loop
    (tmp_path / "b/self").symlink_to(tmp_path / "b/self")
    named = [str(tmp_path / "odd"), str(tmp_path / "b/1.jpg"), str(tmp_path)]
    photos, left_out = find_photos(named)
    names = ["odd", "b/1.jpg", "a.webp", "b/2.PNG", caf, "b/folder.png/4.png", "b/linked/c/5.png"]
    assert photos == [str(tmp_path / name) for name in names]
    # a file that is named is taken whatever its suffix; in a folder the suffix decides
    dead = f"such as {tmp_path}/b/gone.png -> {tmp_path}/nowhere"
    assert left_out == {
        "hidden": 2,
        "not a regular file": 1,
        "not an image suffix": 3,
        f"link that leads nowhere, {dead}": 2,
        "link to a folder that was searched already": 2,
        "cannot be followed: Too many levels of symbolic links": 1,
    }
    with pytest.raises(UserError, match="missing: no such file or folder"):
        find_photos([str(tmp_path / "missing")])
    with pytest.raises(UserError, match=r"gone.png: no such file .*leads to .*nowhere, which is"):
        find_photos([str(tmp_path / "b/gone.png")])
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead/1.png").symlink_to("/moved/1.png")
    with pytest.raises(UserError, match="no photo .*are 1 link .*dead/1.png -> /moved/1.png"):
        find_photos([str(tmp_path / "dead")])
