"""Labels as a naive reading gives them; `torture/` reads mutated files with a second reader."""

import numpy as np
import pytest

from petface.data.annotations import read_aliases, read_species, stored_reading
from petface.errors import UserError
from petface.taxonomy import columns_of, with_columns


def read(tmp_path, text, species="dog", aliases=None):
    path = tmp_path / f"{species}.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_species(path, species, aliases)


def table_of(annotations):
    """{record: {feature: label or None}} spelt out."""
    return {
        str(record): {
            feature: vocabulary[labels[i]] if labels[i] >= 0 else None
            for feature, labels in annotations.labels.items()
            for vocabulary in [annotations.vocabularies[feature]]
        }
        for i, record in enumerate(annotations.records)
    }


def test_a_plain_file(tmp_path):
    got = read(
        tmp_path,
        "Name,Gender,Breed,Color1,Color2\n"
        '000002,F,"Bulldog, Olde English mix",White,Tabby\n'
        "000001,Male,Pitbull/X  Mixed Breed,unknown,N/A\n",
        "cat",
    )
    assert got.species == "cat" and got.features == ("breed", "color1", "color2", "gender")
    assert table_of(got) == {
        "000001": {
            "breed": "Pitbull/X  Mixed Breed", "color1": None, "color2": None, "gender": "male",
        },
        "000002": {
            "breed": "Bulldog, Olde English mix", "color1": "White", "color2": "Tabby",
            "gender": "female",
        },
    }  # fmt: skip
    assert got.vocabularies["breed"] == ("Bulldog, Olde English mix", "Pitbull/X  Mixed Breed")
    assert got.vocabularies["gender"] == ("female", "male")
    assert all(labels.dtype == np.int32 for labels in got.labels.values())
    assert got.conflicts == [] and got.notes == []


def test_a_table_of_other_columns_and_fixed_classes(tmp_path):
    (tmp_path / "x.csv").write_text("Name,SEX,Race,Notes\n1,weiblich,b,\n2,x,c,\n3,,a,\n")
    table = {"breed": ("race", ["c", "a", "z"]), "gender": "Sex", "color1": "Farbe"}
    got = read_species(tmp_path / "x.csv", "cat", None, {"weiblich": "female"}, table)
    assert got.features == ("breed", "gender") and got.heads["breed"] == ("c", "a", "z")
    assert table_of(got) == {
        "000001": {"breed": None, "gender": "female"},
        "000002": {"breed": "c", "gender": None},
        "000003": {"breed": "a", "gender": None},
    }
    noted = " ".join(got.notes)
    for words in ("no column Farbe in", "NO color1 head", "ignored", "'Notes'", "1 breed cells"):
        assert words in noted
    other = read_species(tmp_path / "x.csv", "zebra").notes  # whoever is not in PetFace
    assert other == [f"zebra: columns ignored in {tmp_path}/x.csv: 'SEX', 'Race', 'Notes'"]
    # what a checkpoint keeps reads the same again
    again = read_species(tmp_path / "x.csv", "cat", **stored_reading({"labels": got.reading}))
    assert table_of(again) == table_of(got)
    odd = {"labels": {"gender_map": {"x": ["?"]}, "table": 3, "aliases": {}}}
    assert stored_reading(odd) == {"aliases": {}} and stored_reading({}) == {}
    for aliases in ({"breed": 3}, {"breed": {"a": 3}}, {"breed": {3: "a"}}):
        assert stored_reading({"labels": {"aliases": aliases}}) == {}


@pytest.mark.parametrize(
    "table",
    [{"race": "Race"}, {"breed": 3}, {"breed": ("Race", "a")}, {"breed": ("Race", [1])}]
    + [{"file": name} for name in ("../cat.csv", "a/b.csv", "cat.txt", "", 3)],
)
def test_a_table_that_makes_no_sense_is_refused(table):
    with pytest.raises(UserError, match="SPECIES_CONFIG of cat: '"):
        with_columns({"cat": table}, ())


def test_columns_are_laid_over_the_tables():
    tables = {"cat": {"breed": "Breed"}}
    got = with_columns(tables, ["cat.gender = Sex", "dog.breed=Race=A", "yak.file=y.csv"])
    assert got["cat"] == {"breed": "Breed", "gender": "Sex"} and tables == {
        "cat": {"breed": "Breed"}
    }
    assert got["dog"] == {"breed": "Race=A", "gender": "Gender"}
    assert columns_of("yak", got["yak"]) == columns_of("yak", None)
    for entry in ("cat.breed", "breed=Race", "=", "cat.=x"):
        with pytest.raises(UserError, match="COLUMNS has"):
            with_columns(tables, [entry])


def test_unknown_tokens_are_compared_whole(tmp_path):
    for token in ("", " ", "unknown", "Unknown", "UNK", "na", "NA", "n/a", "NaN"):
        got = read(tmp_path, f"Name,Gender,Breed\n1,F,{token}\n2,F,Unknown Longhair\n3,F,None\n")
        assert got.vocabularies["breed"] == ("None", "Unknown Longhair")
        assert got.labels["breed"].tolist() == [-1, 1, 0]


def test_headers_choose_the_features(tmp_path):
    got = read(tmp_path, "id, NAME ,gender,BREED\n9,1,m,Pug\n")
    assert table_of(got) == {"000001": {"breed": "Pug", "gender": "male"}}
    assert len(got.notes) == 1 and "'id'" in got.notes[0]
    got = read(tmp_path, "Name,Gender,Color1,Color2\n1,F,Sable,\n", "ferret")
    assert got.features == ("color1", "gender"), "a ferret has one colour"
    got = read(tmp_path, "Name,Gender,Breed\n1,neutered,a\n2,neutered,a\n3,x,a\n4,MALE,a\n")
    assert got.labels["gender"].tolist() == [-1, -1, -1, 1], "one alone has both classes"
    assert any("3 gender cells" in note and "'neutered', 'x'" in note for note in got.notes)
    got = read(tmp_path, "Name,Gender,Breed\n1,unknown,\n2,,NA\n")
    assert got.vocabularies == {"breed": (), "gender": ()}
    assert any("no known breed" in note and "no known gender" in note for note in got.notes)


def test_names_become_canonical_and_rows_merge_or_conflict(tmp_path):
    got = read(
        tmp_path,
        "Name,Gender,Breed\n7,F,Pug\n7.0,F,Pug\n000008,,Pug\n 8 ,M,unknown\n"
        "9,F,Pug\n+9,F,Boxer\n9.,F,Pug\n10,F,Akita\n10,M,Akita\n",
    )
    assert table_of(got) == {
        "000007": {"breed": "Pug", "gender": "female"},
        "000008": {"breed": "Pug", "gender": "male"},
        "000009": {"breed": None, "gender": "female"},
        "000010": {"breed": "Akita", "gender": None},
    }
    # a label whose only record is in conflict is not a class
    assert got.vocabularies["breed"] == ("Akita", "Pug")
    found = [(c.record, c.feature, c.values, c.lines) for c in got.conflicts]
    assert found == [
        ("000009", "breed", ("Pug", "Boxer", "Pug"), (6, 7, 8)),
        ("000010", "gender", ("female", "male"), (9, 10)),
    ]
    assert any("2 records have contradictory rows" in note for note in got.notes)


def test_align_follows_any_order_and_leaves_the_rest_unknown(tmp_path):
    got = read(tmp_path, "Name,Gender,Breed\n3,F,c\n1,F,a\n2,F,b\n")
    names = np.array(["000002", "000099", "000000", "000003", "not a number"])
    assert got.align(names)["breed"].tolist() == [1, -1, -1, 2, -1]
    assert got.align(np.array([], dtype="U6"))["breed"].tolist() == []
    empty = read(tmp_path, "Name,Gender,Breed\n")
    assert empty.align(names)["breed"].tolist() == [-1] * 5
    assert any("no row" in note for note in empty.notes)


def test_errors_name_the_line(tmp_path):
    for text, message in {
        "Name;Gender\n1;F\n": "line 1: .*separated by commas",
        "Name,Gender,gender \n1,F,F\n": "line 1: column 'gender' appears twice",
        "Name,Gender,Breed\n1,F,a\n ,M,b\n": "line 3: the Name cell is empty",
    }.items():
        with pytest.raises(UserError, match=message):
            read(tmp_path, text)


def test_aliases_merge_before_rows_are_compared(tmp_path):
    (tmp_path / "aliases.csv").write_text(
        "species,feature,label,alias_of\n"
        "dog,breed,Alsatian,German Shepherd\n"
        "dog,breed,Alsation,German Shepherd\n"
        "cat,breed,Abbysinian,Abyssinian\n"
    )
    aliases = read_aliases(tmp_path / "aliases.csv")
    assert sorted(aliases) == ["cat", "dog"]
    text = "Name,Gender,Breed\n1,F,Alsatian\n1,F,German Shepherd\n2,F,Abbysinian\n"
    got = read(tmp_path, text, aliases=aliases["dog"])
    assert got.vocabularies["breed"] == ("Abbysinian", "German Shepherd")
    assert got.conflicts == [] and got.labels["breed"].tolist() == [1, 0]
    assert any("1 breed aliases match no label: 'Alsation'" in note for note in got.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("dog,gender,f,m", "line 2: feature 'gender'"),
        ("dog,bred,a,b", "line 2: feature 'bred'"),
        ("dog,breed,a,b\ndog,breed,a,c", "line 3: 'a' already has an alias, on line 2"),
        ("dog,breed,a,b\ndog,breed,b,c", "line 2: 'b' is itself an alias"),
        ("dog,breed,a,unknown", "line 2: an unknown token"),
        ("dog,breed,NA,a", "line 2: an unknown token"),
    ],
)
def test_alias_files_are_read_strictly(tmp_path, rows, message):
    path = tmp_path / "aliases.csv"
    path.write_text(f"species,feature,label,alias_of\n{rows}\n")
    with pytest.raises(UserError, match=message):
        read_aliases(path)
    path.write_text("label,alias_of\na,b\n")
    with pytest.raises(UserError, match="line 1: the header must be"):
        read_aliases(path)
