"""Settings: which constants count, what a type accepts, presets, flags, help, round trip."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import pickle
import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Annotated, Literal

import pytest

from petface.errors import SettingsError
from petface.settings import (
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    Seed,
    read_settings,
)
from petface.settings.constants import gather
from petface.settings.value_types import accept

SCRIPT = '''"""Train something small.

    python train.py
"""

from typing import Annotated, Final, Literal

from petface.settings import Fraction, NonNegative, Positive, PositiveFloat, Range, Seed

# --- Data ---
# Where the photos lie.
# One folder per class.
IMAGES_ROOT: str = "data/images"
SPECIES: str | tuple[str, ...] = "all"  # one species, several, or "all"
SPLIT_FRACTIONS: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)  # train, val, test

# --- Recipe ---

BATCH_SIZE: Positive = 256  # images per step  # noqa: E501
LR: PositiveFloat = 1e-3  # step size of AdamW
PHASE_LR: tuple[float, ...] = (1e-3, 3e-4)
TAIL_MODE: Literal["head_exclusion", "quantile", "none"] = "head_exclusion"  # who is minority
HEAD_CLASSES: tuple[str, ...] = (  # never minority
    "cat",
    "dog",
)
USE_AMP: bool = True  # mixed precision on CUDA
MAX_STEPS: Positive | None = None  # stop early
NOTE: str | None = None
LABEL_SMOOTHING: Annotated[float, Range(0, 1, open_high=True)] = 0
WARMUP_STEPS: NonNegative = 0
SEED: Seed = 0

lower_case: int = 1
PLAIN = 2
_PRIVATE: int = 3
FIXED: Final = ("not", "a setting")
FIXED_TOO: Final[int] = 4
DECLARED: int
'''
_numbers = itertools.count()


def load(source=SCRIPT):
    """Import `source` as the module of a script `train.py` in the working folder."""
    path = Path.cwd() / "train.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"settings_script_{next(_numbers)}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def module():
    return load()


def preset(text, name="a.toml"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def refused(module, *argv, **more):
    with pytest.raises(SettingsError) as caught:
        read_settings(module, argv, **more)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def origins(settings):
    """Read where each value was set last from the lines of `provenance`."""
    words = [line.split() for line in settings.provenance().split("\n")]
    return {line[0]: line[line.index("from") + 1] for line in words if "from" in line}


# --- What is a setting ---


@pytest.mark.parametrize(
    ("line", "flag", "found"),
    [
        ("LR = 1e-3  # rate", "0.5", 0.5),
        ("LR = 3", "4", 4),
        ("LR = 3", "0.5", 0.5),
        ("LR = True", "false", False),
        ('LR = "a"', "b", "b"),
        ("LR = (1e-3, 3)", "1,0.5", (1, 0.5)),
        ('LR = ["a", "b"]', "c", ("c",)),
    ],
)
def test_a_constant_that_lost_its_annotation_is_a_setting_where_it_is_read(line, flag, found):
    module = load(f"OTHER = 1\n{line}\n\ndef main(s):\n    return s.LR\n")
    assert list(read_settings(module, []).as_dict()) == ["LR"]
    settings = read_settings(module, ["--lr", flag])
    assert (settings.LR, type(settings.LR)) == (found, type(found))
    again = preset(settings.as_toml())
    assert read_settings(module, ["--config", again]) == settings


def test_one_whose_type_cannot_be_told_is_refused_by_its_line():
    for value in ("None", "()", "{}", "[(1, 2)]"):
        module = load(f"\nLR = {value}\n\ndef main(s):\n    return s.LR\n")
        assert refused(module) == "train.py:2: LR needs its type; write LR: <type> = ..."


def test_only_annotated_public_upper_case_constants_are_settings(module):
    settings = read_settings(module, [])
    names = """IMAGES_ROOT SPECIES SPLIT_FRACTIONS BATCH_SIZE LR PHASE_LR TAIL_MODE HEAD_CLASSES
        USE_AMP MAX_STEPS NOTE LABEL_SMOOTHING WARMUP_STEPS SEED"""
    assert list(settings.as_dict()) == names.split()  # in the order of the file
    assert (settings.SPECIES, settings.PHASE_LR, settings.NOTE) == ("all", (1e-3, 3e-4), None)
    assert type(settings.LABEL_SMOOTHING) is float  # written as 0


def test_annotations_kept_as_text_are_resolved():
    later = "from __future__ import annotations\n" + SCRIPT.replace("SEED: Seed", 'SEED: "Seed"')
    module = load(later + "\nBAD_FOR_OTHERS: 'NoSuchType'\n")  # no value: no setting
    assert read_settings(module, ["--seed", "5"]).SEED == 5
    assert "--seed" in refused(module, "--seed", "-1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("LR: PositiveFloat = -1.0", ["LR must be a number > 0, not -1.0"]),
        ("LR: float = float('nan')", ["nan"]),
        ("N: int = 1.0", ["a whole number"]),
        ("MODE: Literal['a', 'b'] = 'c'", ["one of a, b", "'c'"]),
        ("CLASSES: tuple[list[int], ...] = ()", ["CLASSES", "no type for a setting"]),
        ("LR: 'Flaot' = 1.0", ["LR", "Flaot"]),
    ],
)
def test_bad_line_in_the_script_names_file_and_line(line, words):
    head = "from typing import Literal\nfrom petface.settings import PositiveFloat\n\nOK: int = 1\n"
    message = refused(load(head + line + "\n"), "--ok", "2")
    assert message.startswith("train.py:5: ") and all(word in message for word in words), message


# --- What each type accepts ---

Flag = type("Flag", (str,), {})
UP_TO_0 = Annotated[float, Range(high=0, open_high=True)]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 3, 3.0),
        (bool, False, False),
        (NonNegative, 0, 0),
        (PositiveFloat, 1e-300, 1e-300),
        (Fraction, 1, 1.0),
        (Seed, 2**32 - 1, 2**32 - 1),
        (UP_TO_0, -1, -1.0),
        (tuple[int, str], [1, "a"], (1, "a")),
        (tuple[tuple[int, ...], ...], [[1], []], ((1,), ())),
        (str | tuple[str, ...], ["a"], ("a",)),
        (int | None, "none", None),
        (str | None, "nonesuch", "nonesuch"),
        (Literal["a", 1], 1, 1),
        # texts of flags
        (float, Flag("-1e-3"), -1e-3),
        (int, Flag("1_000"), 1000),
        (str, Flag("none"), "none"),
        (Positive | None, Flag("None"), None),
        (str | int, Flag("3"), 3),
        (tuple[str, ...], Flag(""), ()),
        (str | tuple[str, ...], Flag("cat, dog,"), ("cat", "dog")),
        (tuple[str, ...] | None, Flag("none"), None),
        (Literal["a", 1], Flag("1"), 1),
        (bool | Literal["auto"], Flag("auto"), "auto"),
    ],
)
def test_accepted_values(hint, value, expected):
    found = accept(value, hint, is_flag=isinstance(value, Flag))
    assert repr(found) == repr(expected)  # repr tells 1 from 1.0 and True


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, True),
        (float, "1"),
        (float, float("nan")),
        (float, 10**400),
        (int, True),
        (int, 1.0),
        (str, 1),
        (str, "\udcff"),
        (Positive, 0),
        (PositiveFloat, 0.0),
        (NonNegativeFloat, -1e-9),
        (Fraction, 1.0000001),
        (Seed, 2**32),
        (UP_TO_0, 0),
        (tuple[Fraction, ...], [0.5, 2.0]),
        (tuple[int, str], [1]),
        (str | tuple[str, ...], [1]),
        (Literal["a", 1], True),
        (Literal["a", 1], "1"),
        (float, Flag("1,5")),
        (float, Flag("inf")),
        (int, Flag("1e3")),
        (Positive | None, Flag("0")),
        (tuple[int, int], Flag("1")),
        (tuple[int, ...], Flag("1,b")),
    ],
)
def test_refused_values(hint, value):
    with pytest.raises(ValueError):
        accept(value, hint, is_flag=isinstance(value, Flag))


# --- Presets ---


def test_presets_then_flags_wherever_they_stand(module):
    one = preset("# demo\nLR = 1\n\nBATCH_SIZE = 64\n", "one.toml")
    two = preset('BATCH_SIZE = 32\nHEAD_CLASSES = ["pig"]\nUSE_AMP = true\n', "two.toml")
    settings = read_settings(module, ["--no-use-amp", "--config", one, f"--config={two}"])
    assert (settings.LR, settings.BATCH_SIZE, settings.HEAD_CLASSES) == (1.0, 32, ("pig",))
    assert settings.USE_AMP is False
    assert origins(settings) == {
        "LR": "one.toml:2",
        "BATCH_SIZE": "two.toml:1",
        "HEAD_CLASSES": "two.toml:2",
        "USE_AMP": "--no-use-amp",
    }
    assert read_settings(module, ["--config", two, "--config", one]).BATCH_SIZE == 64


def test_lines_of_keys_are_exact(module):
    text = (
        'NOTE = """\nLR = 7\nSEED = 8\n"""\n'  # looks like keys, is text
        "HEAD_CLASSES = [\n"
        '  "a", # LR = 9\n'
        "\n"
        "]\n\n"
        '"LR" = 0.5\n'
        "  SEED=3 # SEED = 4\n"
    )
    settings = read_settings(module, ["--config", preset(text)])
    assert (settings.NOTE, settings.LR, settings.SEED) == ("LR = 7\nSEED = 8\n", 0.5, 3)
    lines = {"NOTE": 1, "HEAD_CLASSES": 5, "LR": 10, "SEED": 11}
    assert origins(settings) == {name: f"a.toml:{line}" for name, line in lines.items()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\nBATCHSIZE = 3", ["a.toml:3: ", "BATCHSIZE", "nearest: BATCH_SIZE"]),
        ("XYZZY = 3", ["a.toml:1: ", "train.py has no constant XYZZY", "--help"]),
        ("SEED = 1\nLR = 'fast'", ["a.toml:2: LR must be a number > 0, not 'fast'"]),
        ("SPLIT_FRACTIONS = [0.9, 0.1]", ["a.toml:1: SPLIT_FRACTIONS must be a list of 3"]),
        ("SEED = 1\n[Recipe]\nLR = 1", ["a.toml:2: [Recipe] is a table"]),
        ("LR = 1\nLR = 2", ["a.toml:2: not valid TOML", "overwrite"]),
        (f"SEED = {'9' * 5000}", ["a.toml: not valid TOML", "Exceeds the limit"]),
        ("SEED = 1\nLR = \nBATCH_SIZE = 1", ["a.toml:2: not valid TOML", "line 2"]),
    ],
)
def test_bad_preset_names_file_and_line(module, text, words):
    message = refused(module, "--config", preset(text))
    assert all(word in message for word in words), message


def test_encoding_of_presets(module):
    Path("dos.toml").write_bytes(b"\xef\xbb\xbfSEED = 1\r\nNOTE = 'a'\r\n")
    settings = read_settings(module, ["--config", "dos.toml"])
    assert (settings.NOTE, origins(settings)["NOTE"]) == ("a", "dos.toml:2")
    Path("latin.toml").write_bytes("SEED = 1\nNOTE = 'café'\n".encode("latin-1"))
    assert "latin.toml: not UTF-8: 'utf-8'" in refused(module, "--config", "latin.toml")


def test_missing_preset_names_its_neighbours(module):
    Path("configs").mkdir()
    assert "no .toml file" in refused(module, "--config", "configs/demo.toml")
    preset("", "configs/demo.toml")
    preset("", "configs/reference.toml")
    assert refused(module, "--config", "configs/dem.toml").endswith("nearest: demo.toml")
    listed = refused(module, "--config", "configs/xyz.toml")
    assert "configs/xyz.toml" in listed and listed.endswith("demo.toml, reference.toml")
    assert "--config configs: " in refused(module, "--config", "configs")


# --- Flags ---


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--batch-size=64"], "BATCH_SIZE", 64),
        (["--batch-size", "8", "--batch-size", "9"], "BATCH_SIZE", 9),
        (["--use-amp"], "USE_AMP", True),
        (["--no-use-amp"], "USE_AMP", False),
        (["--use-amp=False"], "USE_AMP", False),
        (["--use-amp", "false"], "USE_AMP", False),
        (["--no-use-amp", "--use-amp", "--lr", "1"], "USE_AMP", True),
        (["--species", "cat", "dog", "--lr", "1"], "SPECIES", ("cat", "dog")),
        (["--species", "cat"], "SPECIES", "cat"),
        (["--phase-lr", "-1e-3", "-2"], "PHASE_LR", (-1e-3, -2.0)),
        (["--note=a=b --lr"], "NOTE", "a=b --lr"),
    ],
)
def test_flags(module, argv, name, value):
    assert repr(getattr(read_settings(module, argv), name)) == repr(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "3"], "unknown flag --batchsize; nearest: --batch-size"),
        (["--batch", "3"], "unknown flag --batch"),  # no abbreviations
        (["--no-lr"], "unknown flag --no-lr"),
        (["-b", "3"], "unknown flag -b"),
        (["--lr", "-1e-3"], "--lr must be a number > 0, not '-1e-3'"),
        (["--lr", "1", "2"], "unexpected '2'"),
        (["--lr"], "--lr needs a value"),
        (["--lr", "--seed", "1"], "--lr needs a value"),
        (["--config"], "--config needs a value"),
        (["--config", "a.toml", "word"], "unexpected 'word'"),
        (["--use-amp=yes"], "--use-amp must be true or false, not 'yes'"),
        (["--no-use-amp=true"], "--no-use-amp takes no value"),
        (["--note", "\udcff"], "--note must be text"),
        (["--", "photos"], "unexpected 'photos'"),
    ],
)
def test_bad_flags(module, argv, message):
    assert message in refused(module, *argv)


def test_switches_are_no_settings(module):
    switches = {"force": "overwrite a finished run", "dry_run": "stop before the first step"}
    settings = read_settings(module, ["--dry-run", "--lr", "1"], switches=switches)
    assert settings.switches == {"dry_run"}
    assert read_settings(module, [], switches=switches).switches == frozenset()
    assert "dry_run" not in settings.as_dict() and "force" not in settings.as_toml()
    assert "takes no value" in refused(module, "--force=yes", switches=switches)
    assert "nearest: --force" in refused(module, "--forse", switches=switches)
    with pytest.raises(AssertionError):
        read_settings(module, [], switches={"lr": "shares its flag with LR"})


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("a.png --lr 1 b.png --use-amp c.png -- --d.png", ("a.png", "b.png", "c.png", "--d.png")),
        ("--species cat dog -- a.png --use-amp", ("a.png", "--use-amp")),
        ("--lr 1", ()),
    ],
)
def test_positional_words(module, argv, words):
    settings = read_settings(module, argv.split(), positional=("photos", "photos to name"))
    assert settings.positional == words
    assert settings.USE_AMP and (settings.LR == 1.0 or settings.SPECIES == ("cat", "dog"))


def heads(text):
    return [line.split()[0].strip(",") for line in text.split("\n") if line.startswith("  --")]


def test_help_shows_everything(module, capsys):
    more = {"switches": {"force": "overwrite"}, "positional": ("photos", "in")}
    with pytest.raises(SystemExit) as end:
        read_settings(module, ["--lr", "1", "-h"], **more)
    assert end.value.code == 0
    text = capsys.readouterr().out
    for line in (
        "usage: python train.py [--flag value ...] [photos ...]",
        "Train something small.",
        "Data:",
        "      Where the photos lie. One folder per class.",
        "      never minority",
        '  --tail-mode  one of head_exclusion, quantile, none; default: "head_exclusion"',
        "  --use-amp, --no-use-amp  true or false; default: true",
        "  --label-smoothing  a number >= 0 and < 1; default: 0.0",
        "      overwrite",
    ):
        assert line in text.split("\n"), line
    assert "noqa" not in text
    flags = ["--" + n.lower().replace("_", "-") for n in read_settings(module, []).as_dict()]
    assert heads(text) == [*flags, "--force", "--config"]
    module.HELP = ("LR", "SEED")  # what the script names
    for flag, expected in (("--help", ["--lr", "--seed"]), ("--help-all", flags)):
        with pytest.raises(SystemExit):
            read_settings(module, [flag])
        text = capsys.readouterr().out
        assert heads(text)[: len(expected) + 1] == [*expected, "--config"]
        assert (f"show all {len(flags)} constants" in text) == (flag == "--help")


# --- The object ---


def test_settings_object(module):
    before = dict(vars(module))
    settings = read_settings(module, ["--lr", "0.5", "--head-classes", "pig"])
    settings.as_dict()["LR"] = 7.0
    assert settings.LR == 0.5 and dict(vars(module)) == before  # never written to
    with pytest.raises(FrozenInstanceError):
        settings.LR = 1.0
    with pytest.raises(AttributeError, match="no constant LRR; nearest: LR"):
        _ = settings.LRR
    same = ["--lr", "5e-1", "--seed", "0", "--head-classes", "pig"]
    assert settings == read_settings(module, same) != read_settings(module, ["--lr", "0.4"])
    assert copy.deepcopy(settings) == settings == pickle.loads(pickle.dumps(settings))


def test_provenance(module):
    same = preset("LR = 0.001\n")  # set, but to what the file says
    assert read_settings(module, ["--config", same]).provenance() == "all constants as in train.py"
    one = preset("SEED = 1\nBATCH_SIZE = 64\nNOTE = 'a\"b'\n")
    settings = read_settings(module, ["--config", one, "--lr", "0.5"])
    assert settings.provenance().split("\n") == [
        "BATCH_SIZE = 64      from a.toml:2 (default: 256)",
        "LR         = 0.5     from --lr (default: 0.001)",
        'NOTE       = "a\\"b"  from a.toml:3 (default: "none")',
        "SEED       = 1       from a.toml:1 (default: 0)",
    ]


# --- The round trip ---


def test_written_settings_are_a_complete_preset(module):
    settings = read_settings(module, ["--species", "cat,", "--lr", "1e-05", "--max-steps", "3"])
    text = settings.as_toml()
    assert set(settings.as_dict()) - set(tomllib.loads(text)) == {"NOTE"}
    assert '# NOTE = "none"' in text.split("\n")
    assert 'SPECIES = ["cat"]  # one species, several, or "all"' in text.split("\n")
    assert text.index("# --- Data ---") < text.index("SPECIES") < text.index("# --- Recipe ---")
    again = read_settings(module, ["--config", preset(text)])
    assert again == settings and again.as_toml() == text
    assert set(origins(again)) == {"SPECIES", "LR", "MAX_STEPS"}  # those that differ, no others


AWKWARD = (
    "quotes \" and '",
    "back\\slash\\n",
    "line\nbreak\r\n\ttab",
    "\x01\x1f\x7f\x80\x9f",
    "é ü 猫 🐱 \u202e right to left \u2028 \ufeff\u00a0",
    "# no comment = []",
    '"""',
    "",
    "none",
)
NUMBERS = (0.1 + 0.2, -5e-324, 1.7976931348623157e308, -0.0, 1e16, 1e-5, 3.0)


def test_awkward_values_survive(module):
    for text in AWKWARD:
        values = {"IMAGES_ROOT": text, "HEAD_CLASSES": AWKWARD, "PHASE_LR": NUMBERS}
        vars(module).update(values, MAX_STEPS=2**70)
        settings = read_settings(module, [])
        written = preset(settings.as_toml())
        vars(module).update(IMAGES_ROOT="other", HEAD_CLASSES=(), PHASE_LR=(), MAX_STEPS=1)
        again = read_settings(module, ["--config", written])
        assert again == settings and repr(again.PHASE_LR) == repr(NUMBERS)


def test_none_over_another_default_survives():
    module = load("STEPS: int | None = 5  # how many\nNAME: str | None = 'a'\n")
    settings = read_settings(module, ["--steps", "none", "--name", "none"])
    assert (settings.STEPS, settings.NAME) == (None, None)
    assert read_settings(module, ["--config", preset(settings.as_toml())]) == settings


def test_comments_cannot_break_the_toml():
    source = "# --- A\x7f ---\nSEED: int = 1  # bell \x07 \x7f, a\ttab and 猫\n"
    text = read_settings(load(source), []).as_toml()
    assert tomllib.loads(text) == {"SEED": 1} and "猫" in text


@pytest.mark.parametrize(
    ("lines", "comment", "group"),
    [
        ("# --- A ---\nN: int = 1", "", "A"),
        ("# === A: what counts ===\n# above\nN: int = 1", "above", "A: what counts"),
        ("# ---- A\n#\n# one\n# two\nN: int = 1", "one two", "A"),
        ("# not mine\n\nN: int = 1", "", ""),
        ("# above\nN: int = 1  # beside", "beside", ""),
        ("# --- A ---\nM: int = 1\n# --- B ---\n# ------\nN: int = 1", "", "B"),
        ("N: tuple[str, ...] = (\n    '# text',  # inner\n)  # last", "last", ""),
        ("# --config is no heading\nN: int = 1", "--config is no heading", ""),
        ("X = '''\n# --- A ---\n# above\n'''\nN: int = 1", "", ""),
        ("N: int = 1  # first\nN: int = 2  # second", "second", ""),
    ],
)
def test_comments_and_groups(lines, comment, group):
    constant = gather(load(lines + "\n"))[-1]
    assert (constant.name, constant.comment, constant.group) == ("N", comment, group)
