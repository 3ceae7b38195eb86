"""Photos of every kind and size on the real scripts: one rule each, whoever asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petface.files import plain_cell
from tests import naive, scripts


def rows_of(path):
    return {Path(plain_cell(row["image"])).name: row for row in naive.rows_of(path)}


def twins(pixels):
    """Kind -> (file name, picture, save options, the RGB pixels that the rule makes of it)."""
    grey = pixels[:, :, 0]
    three = np.stack([grey] * 3, axis=2)
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:, : alpha.shape[1] // 2] = 0
    black = np.where(alpha[:, :, None] > 0, pixels, 0).astype(np.uint8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    palette = Image.fromarray(pixels).quantize(16)
    first, second = Image.fromarray(pixels).quantize(64), Image.new("P", grey.shape[::-1])
    bits = grey > 127
    cmyk = Image.fromarray(255 - pixels)
    cmyk = Image.merge("CMYK", [*cmyk.split(), Image.new("L", cmyk.size)])
    return {
        "16bit.png": (deep, {}, three),
        "grey.png": (Image.fromarray(grey), {}, three),
        "palette.png": (palette, {}, np.array(palette.convert("RGB"))),
        "alpha.png": (Image.fromarray(np.dstack([pixels, alpha])), {}, black),
        "bits.png": (
            Image.fromarray(bits), {}, np.stack([bits * np.uint8(255)] * 3, axis=2)
        ),
        "animated.gif": (
            first, {"save_all": True, "append_images": [second]}, np.array(first.convert("RGB"))
        ),
        "turned.png": (Image.fromarray(pixels), {"exif": exif}, np.rot90(pixels, -1)),
        "cmyk.tiff": (cmyk, {}, np.array(cmyk.convert("RGB"))),
    }  # fmt: skip


def test_each_kind_is_answered_as_the_plain_photo_that_its_rule_makes(
    tree, model_flags, script, tmp_path
):
    """In bulk and one by one; what training and evaluation read is `decode`, too."""
    pixels = np.asarray(Image.open(tree.images / naive.photos(tree.images)[0]).convert("RGB"))
    for folder in ("odd", "plain"):
        (tmp_path / folder).mkdir()
    for name, (picture, options, rgb) in twins(pixels).items():
        picture.save(tmp_path / "odd" / name, **options)
        Image.fromarray(np.ascontiguousarray(rgb)).save(tmp_path / "plain" / f"{name}.png")
    for name, size in {"1x1": (1, 1), "1x5000": (1, 5000), "5000x2": (5000, 2)}.items():
        Image.new("RGB", size, (200, 60, 40)).save(tmp_path / "odd" / f"{name}.png")
        Image.new("RGB", (32, 32), (200, 60, 40)).save(tmp_path / "plain" / f"{name}.png.png")
    out = tmp_path / "answers.csv"
    places = tmp_path / "odd", tmp_path / "plain"
    script(scripts.INFERENCE, ["predict", *places, *model_flags, "--out", out]).checked()
    rows = rows_of(out)
    odd = sorted(path.name for path in (tmp_path / "odd").iterdir())
    assert len(rows) == 2 * len(odd) == 22
    shown = script(
        scripts.INFERENCE, [*(tmp_path / "odd" / name for name in odd), *model_flags, "--json"]
    )
    alone = [json.loads(line) for line in shown.out.splitlines()]
    for name, answer in zip(odd, alone, strict=True):
        row, plain = rows[name], rows[f"{name}.png"]
        assert row["status"] in ("ok", "no_specialist"), row
        for column, cell in row.items():
            if column.endswith("_prob") and cell:
                assert float(cell) == pytest.approx(float(plain[column]), abs=2e-6), (name, column)
            elif column != "image":
                assert cell == plain[column], (name, column)
        assert answer["species"]["label"] == row["species_pred"]
        assert answer["species"]["topk"][0][1] == pytest.approx(
            float(row["species_prob"]), abs=1e-5
        )


def test_a_name_that_is_not_utf8_has_its_row_in_an_evaluation(
    tree, script, evaluation_flags, evaluation_run, tmp_path
):
    odd = tree.copy(tmp_path / "data")
    first, *_ = naive.photos(odd.images)
    name = os.fsdecode(b"caf\xe9.png")
    (odd.images / first).rename((odd.images / first).with_name(name))
    flags = [str(f).replace(str(tree.root), str(odd.root)) for f in evaluation_flags]
    script(scripts.INFERENCE, [*flags, "--out-dir", tmp_path / "out"]).checked()
    before = rows_of(evaluation_run.folder / "petface_eval_per_image.csv")
    assert evaluation_run.result.code == 0 and len(before) > 1
    rows = naive.rows_of(tmp_path / "out/petface_eval_per_image.csv")
    assert len(rows) == len(naive.photos(tree.images))
    (row,) = [row for row in rows if "caf" in row["image"]]
    assert row["status"] == "ok" and row["species_pred"]
