"""The table of images in the documented order, and CSV files read strictly."""

import os
import random

import numpy as np
import pytest

from petface.data.catalog import build_catalog, strict_rows, string_array
from petface.errors import UserError


def random_rows(seed):
    """Return (class, record, path) in any order; a file name need not be UTF-8."""
    draw = random.Random(seed)
    images, rows = [b"\xff\xfe.png", b"a b.png", b"01.png", b"10.png", b"2.JPG"], set()
    while len(rows) < 60:
        name, record = draw.choice(["cat", "dog", "hen", "ape"]), f"{draw.randrange(15):06d}"
        rows.add((name, record, f"{name}/{record}/".encode() + draw.choice(images)))
    return draw.sample(sorted(rows), 60)


@pytest.mark.parametrize("seed", range(20))
def test_the_table_holds_every_image_in_the_documented_order(seed, tmp_path):
    rows = random_rows(seed)
    pairs = sorted({row[:2] for row in rows})
    records = [(*pair, sorted(p for *owner, p in rows if tuple(owner) == pair)) for pair in pairs]
    # without an image it is not kept, and counts as not seen
    catalog = build_catalog(tmp_path, [("ape", "", []), *records, ("ape", "", [])])
    with pytest.raises(AssertionError, match="not in order"):
        build_catalog(tmp_path, records[::-1])
    assert sorted(rows) == [
        (
            catalog.classes[catalog.class_index[i]],
            catalog.record_names[catalog.record_index[i]],
            catalog.relative_path(i),
        )
        for i in range(len(catalog))
    ]
    assert catalog.classes == tuple(sorted({name for name, _ in pairs}))
    assert list(catalog.record_names) == [record for _, record in pairs]
    assert [catalog.classes[c] for c in catalog.record_class] == [name for name, _ in pairs]
    assert catalog.num_records == len(pairs)
    assert os.fsencode(catalog.path(7)) == os.fsencode(tmp_path) + b"/" + sorted(rows)[7][2]
    kinds = [catalog.path_bytes, catalog.path_offsets, catalog.class_index, catalog.record_index]
    assert [array.dtype for array in kinds] == [np.uint8, np.int64, np.int16, np.int32]  # narrow
    empty = build_catalog(tmp_path, [])
    assert len(empty) == 0 and empty.classes == ()


def test_one_long_name_does_not_widen_a_quarter_of_a_million_rows():
    names = [f"{i:06d}" for i in range(100_000)]
    narrow, wide = string_array(names), string_array([*names, "x" * 255])
    assert narrow.nbytes == 100_000 * 6 * 4
    assert wide.nbytes == 100_001 * 8  # pointers
    assert wide[-1] == "x" * 255 and list(wide[:3]) == names[:3]
    assert np.array_equal(np.searchsorted(wide, np.array(["000007"])), [7])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Name,Breed\n1,caf\xe9\n", ", line 2: "),
        (b"Name,Breed\r\n1,a\r\n2,\x00\r\n", ", line 3: "),
        (b"Name,Breed\r1,a\r2,\xff\r", ", line 3: "),
        (b"Name,Breed\n1,a,b\n", ", line 2: "),
        (b"Name,Breed\n1,a\n2\n", ", line 3: "),
        (b"Name,Breed\n1,a\n,,\n", ", line 3: "),
        (b'Name,Breed\n1,"a\n2,b\n', ", line 2: "),
        (b'Name,Breed\n1,"a\nb"\n2,c,d\n', ", line 4: "),
        (b'Name,Breed\n1,"a"b\n', ", line 2: "),
        ("Name,Breed\n1,a\n".encode("utf-16"), ", line 1: "),
        *((data, " is empty") for data in (b"", b"\xef\xbb\xbf", b"\n\n", b"  \r\n")),
    ],
)
def test_strict_rows_names_the_line_of_what_is_wrong(tmp_path, data, words):
    (tmp_path / "cat.csv").write_bytes(data)
    with pytest.raises(UserError, match=rf"cat\.csv{words}"):
        list(strict_rows(tmp_path / "cat.csv"))
    with pytest.raises(UserError, match=r"nothing\.csv"):
        list(strict_rows(tmp_path / "nothing.csv"))


def test_strict_rows_counts_lines_through_quoted_newlines_and_blanks(tmp_path):
    path = tmp_path / "cat.csv"
    path.write_bytes(b'\xef\xbb\xbfName,Breed\r\n\r\n1,"a\r\nb"\r\n,\r\n2,c\r\n')
    assert list(strict_rows(path)) == [
        (1, ["Name", "Breed"]),
        (3, ["1", "a\r\nb"]),
        (6, ["2", "c"]),
    ]
