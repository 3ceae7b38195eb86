import os
import random

import numpy as np
import pytest

from petface.data.catalog import CatalogBuilder, strict_rows, string_array
from petface.errors import UserError


def naive_order(rows):
    """The documented order, from (class, record, path) rows."""
    return sorted(set(rows))


def random_rows(draw, num_rows):
    rows = set()
    while len(rows) < num_rows:
        name = draw.choice(["cat", "dog", "hen", "ape"])
        record = f"{draw.randrange(15):06d}"
        image = draw.choice([b"\xff\xfe.png", b"a b.png", b"01.png", b"10.png", b"2.JPG", b"0.png"])
        rows.add((name, record, f"{name}/{record}/".encode() + image))
    rows = list(rows)
    draw.shuffle(rows)
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_arrival_gives_the_documented_table(seed, tmp_path):
    rows = random_rows(random.Random(seed), 60)
    builder = CatalogBuilder(tmp_path)
    for name, record, path in rows:
        builder.add(name, record, [path])
    catalog = builder.build()
    expected = naive_order(rows)
    assert len(catalog) == 60
    assert catalog.classes == tuple(sorted({row[0] for row in rows}))
    got = [
        (
            catalog.classes[catalog.class_index[i]],
            str(catalog.record_names[catalog.record_index[i]]),
            catalog.relative_path(i),
        )
        for i in range(len(catalog))
    ]
    assert got == expected
    pairs = sorted({row[:2] for row in rows})
    assert catalog.num_records == len(pairs)
    assert list(catalog.record_names) == [record for _, record in pairs]
    assert [catalog.classes[c] for c in catalog.record_class] == [name for name, _ in pairs]


def test_images_of_one_record_that_arrive_one_by_one_are_sorted(tmp_path):
    builder = CatalogBuilder(tmp_path)
    for path in [b"cat/1/b.png", b"cat/1/a.png"]:
        builder.add("cat", "1", [path])
    catalog = builder.build()
    assert [catalog.relative_path(i) for i in range(2)] == [b"cat/1/a.png", b"cat/1/b.png"]


def test_types_are_the_narrow_ones_that_keep_a_million_images_small(tmp_path):
    builder = CatalogBuilder(tmp_path)
    builder.add("cat", "000000", [b"cat/000000/00.png"])
    catalog = builder.build()
    kinds = [catalog.path_bytes, catalog.path_offsets, catalog.class_index, catalog.record_index]
    assert [array.dtype for array in kinds] == [np.uint8, np.int64, np.int16, np.int32]
    assert catalog.record_class.dtype == np.int16
    assert catalog.path_offsets.tolist() == [0, 17]


def test_paths_that_are_not_utf8_come_back_as_the_same_bytes(tmp_path):
    builder = CatalogBuilder(tmp_path)
    builder.add("cat", "1", [b"cat/1/\xff.png"])
    catalog = builder.build()
    assert catalog.relative_path(0) == b"cat/1/\xff.png"
    assert os.fsencode(catalog.path(0)) == os.fsencode(tmp_path) + b"/cat/1/\xff.png"


def test_a_record_without_an_image_is_not_kept(tmp_path):
    builder = CatalogBuilder(tmp_path)
    builder.add("cat", "1", [])
    assert len(builder.build()) == 0 and builder.build().classes == ()


def test_one_long_name_does_not_widen_a_quarter_of_a_million_rows():
    names = [f"{i:06d}" for i in range(100_000)]
    narrow, wide = string_array(names), string_array([*names, "x" * 255])
    assert narrow.nbytes == 100_000 * 6 * 4
    assert wide.nbytes == 100_001 * 8  # pointers
    assert wide[-1] == "x" * 255 and list(wide[:3]) == names[:3]
    assert np.array_equal(np.searchsorted(wide, np.array(["000007"])), [7])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"Name,Breed\n1,caf\xe9\n", 2),
        (b"Name,Breed\r\n1,a\r\n2,\x00\r\n", 3),
        (b"Name,Breed\r1,a\r2,\xff\r", 3),
        (b"Name,Breed\n1,a,b\n", 2),
        (b"Name,Breed\n1,a\n2\n", 3),
        (b'Name,Breed\n1,"a\n2,b\n', 2),
        (b'Name,Breed\n1,"a\nb"\n2,c,d\n', 4),
        (b'Name,Breed\n1,"a"b\n', 2),
        ("Name,Breed\n1,a\n".encode("utf-16"), 1),
    ],
)
def test_strict_rows_names_the_line_of_what_is_wrong(tmp_path, data, line):
    path = tmp_path / "cat.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"cat\.csv, line {line}: "):
        list(strict_rows(path))


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n\n", b"  \r\n"])
def test_a_file_without_a_header_is_an_error(tmp_path, data):
    path = tmp_path / "cat.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cat\.csv is empty"):
        list(strict_rows(path))


def test_strict_rows_counts_lines_through_quoted_newlines_and_blanks(tmp_path):
    path = tmp_path / "cat.csv"
    path.write_bytes(b'\xef\xbb\xbfName,Breed\r\n\r\n1,"a\r\nb"\r\n,\r\n2,c\r\n')
    assert list(strict_rows(path)) == [
        (1, ["Name", "Breed"]),
        (3, ["1", "a\r\nb"]),
        (6, ["2", "c"]),
    ]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.csv"):
        list(strict_rows(tmp_path / "nothing.csv"))
