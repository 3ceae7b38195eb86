"""Names: of classes, of records and images, unique on any file system."""

import unicodedata

import pytest

from petface.data.sources.entries import UniqueNames, class_name, safe_name
from petface.errors import UserError
from petface.taxonomy import canonical_record, is_unknown


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("IMG 0001 (copy)", "IMG_0001_copy"),
        ("7", "000007"),
        ("7.0", "7_0"),
        ("00000007", "000007"),
        ("...", "photo"),
        ("", "photo"),
        ("NaN", "NaN_photo"),
        ("n/a", "n_a"),
        ("=cmd()|x", "cmd_x"),
        ("-rf", "rf"),
        ("../../etc", "etc"),
        ("снег 1", "снег_1"),
        ("e\u0301", "é"),
        ("\udcff", "photo"),
        ("a" * 300, "a" * 80),
        ("é" * 300, "é" * 40),
    ],
)
def test_a_safe_name(text, name):
    assert safe_name(text) == name
    assert safe_name(name) == canonical_record(name) == name and not is_unknown(name)


def test_names_stay_apart_whatever_their_case_and_form():
    names = UniqueNames()
    wanted = ["a", "A", "a_2", "a", "é", unicodedata.normalize("NFD", "É"), "000007", "000007"]
    taken = [names.take(name) for name in wanted]
    folded = {unicodedata.normalize("NFC", name.casefold()) for name in taken}
    assert len(folded) == len(wanted)
    assert taken[:4] == ["a", "A_2", "a_2_2", "a_3"]
    many = [names.take("same") for _ in range(2000)]
    assert len(set(many)) == 2000 and many[-1] == "same_2000"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unknown", "means not known"),
        (" NaN ", "means not known"),
        (".cat", "not usable"),
        ("..", "not usable"),
        ("a/b", "not usable"),
        ("a\nb", "control character"),
        ("\udcff", "not UTF-8"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)
def test_a_class_name_is_refused_with_the_reason(text, reason):
    with pytest.raises(UserError, match=reason):
        class_name(text)


def test_a_class_name_keeps_its_spelling():
    assert class_name(" Bulldog, Olde mix. ") == "Bulldog, Olde mix."
    assert class_name("e\u0301") == "é"
    assert class_name("=1+1") == "=1+1"
