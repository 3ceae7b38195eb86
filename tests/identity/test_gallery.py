"""The gallery: an exact search, fused photos, files that say of which network they are."""

import os

import numpy as np
import pytest

from petface.errors import UserError
from petface.identity import evaluate, gallery
from tests.identity.test_figures import unit


def test_search_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(gallery, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    queries, known = unit(rng, 5), unit(rng, 40)
    places, values = gallery.search(queries, known, 3)
    for k in range(5):
        order = np.argsort(-(known @ queries[k]))[:3]
        assert places[k].tolist() == order.tolist()
        assert values[k] == pytest.approx((known @ queries[k])[order])
    assert gallery.search(queries, known[:2], 3)[0].shape == (5, 2)


def test_photos_of_an_animal_are_fused_and_a_stranger_is_unknown():
    rows = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [np.nan] * 3], np.float32)
    known = gallery.Gallery.of_photos(rows, ["b", "b", "a", "c"])
    assert known.animals == ("a", "b")  # no photo of c could be read
    assert known.embeddings[1] == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    asked = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [np.nan] * 3], np.float32)
    groups = [["one"], ["two", "three"], ["broken"]]
    first, second, third = known.answers(groups, asked, 2, threshold=0.9)
    assert (first["animal"], first["topk"][0]) == ("a", ("a", pytest.approx(1.0)))
    assert second["animal"] == "b" and second["topk"][0][1] == pytest.approx(1.0)
    assert third == {"photos": ["broken"], "status": "unreadable"}
    assert known.answers([["x"]], asked[1:2], 2, 0.9)[0]["animal"] == gallery.UNKNOWN_ANIMAL
    assert known.answers([["x"]], asked[1:2], 2, None)[0]["animal"] == "b"
    assert known.note.endswith("cannot be read; 1 animals are not in it: c")
    for width, value, status in ((1, np.nan, "unreadable"), (3, np.inf, "non_finite")):
        found = known.answers([["x"]], np.full((1, width), value), 2, None)
        assert found == [{"photos": ["x"], "status": status}]
    with pytest.raises(UserError, match="3 numbers"):
        known.answers([["x"]], np.ones((1, 4), np.float32), 2, None)
    with pytest.raises(UserError, match="no photo that can be read"):
        gallery.Gallery.of_photos(rows[3:], ["c"])


def test_embeddings_come_back_and_only_to_their_network(tmp_path):
    path, rows = tmp_path / "e.npy", unit(np.random.default_rng(0), 3)
    photos = ["a/1.png", "=b/2.png", "c/ü, 3.png"]
    gallery.save_embeddings(path, photos, rows, "abc")
    found, again = gallery.load_embeddings(path, "abc")
    assert found == photos and np.array_equal(again, rows)
    with pytest.raises(UserError, match="another network"):
        gallery.load_embeddings(path, "abd")
    with pytest.raises(UserError, match="name such a file"):
        gallery.save_embeddings(tmp_path / "e.txt", photos, rows, "abc")
    (tmp_path / "dog.csv").write_text("Name,Gender\n1,male\n")
    with pytest.raises(UserError, match=r"dog\.csv is in the way"):
        gallery.save_embeddings(tmp_path / "dog.npy", photos, rows, "abc")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.write_bytes(p.read_bytes()[:-8]),
        lambda p: p.with_suffix(".csv").unlink(),
        lambda p: p.with_suffix(".csv").write_text("image,network\na,abc\n"),
        lambda p: np.save(p, np.array([{}], object), allow_pickle=True),
        lambda p: np.save(p, np.zeros((3, 4))),
        lambda p: np.save(p, np.full((3, 4), np.nan, np.float32)),
        lambda p: np.save(p, np.full((3, 4), 1e30, np.float32)),
        lambda p: p.write_bytes(b""),
        lambda p: np.savez(p.open("wb"), np.zeros((3, 4), np.float32)),
        lambda p: (p.unlink(), os.mkfifo(p)),
    ],
)
def test_broken_embeddings_are_refused(tmp_path, spoil):
    path = tmp_path / "e.npy"
    gallery.save_embeddings(path, ["a", "b", "c"], unit(np.random.default_rng(0), 3), "abc")
    spoil(path)
    with pytest.raises(UserError, match=r"e\.npy"):
        gallery.load_embeddings(path, "abc")


def test_copies_are_found_mirrored_and_brightened_too():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 200, (3, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    first, other, third = smooth
    photos = np.stack([first, first[:, ::-1], first + 30, other, third])
    looks = evaluate.look_at(photos)
    right = np.arange(5)
    found = evaluate.are_copies(looks, np.zeros(5, int), right)
    assert found.tolist() == [True, True, True, False, False]
    same_bits = evaluate.hash_embeddings(looks) @ evaluate.hash_embeddings(looks)[0]
    assert same_bits[0] == pytest.approx(1) and same_bits[3] < 0.7
    sharp = looks[:, 0]
    blurred = (photos[:1].astype(int) + np.roll(photos[:1], 1, axis=1)) // 2
    assert evaluate.look_at(blurred.astype(np.uint8))[0, 0] < sharp[0]
