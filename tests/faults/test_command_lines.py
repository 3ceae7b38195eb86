"""A misspelt flag or constant ends every script and tool with exit code 2 and one line."""

from __future__ import annotations

import re

import pytest

from tests import scripts

SCRIPTS = [scripts.STAGE1, scripts.STAGE2, scripts.INFERENCE]
TOOLS = sorted(
    str(path.relative_to(scripts.REPOSITORY))
    for path in (scripts.REPOSITORY / "tools").glob("*.py")
    if "run_script(" in path.read_text(encoding="utf-8")
)
COMMAND = {scripts.INFERENCE: ["evaluate"]}  # a single photo's flags are the same
NEEDED = {"tools/prepare_data.py": ["oxford_pets"]}


def refused(done, *words):
    """One line, exit code 2, no traceback."""
    assert done.code == 2 and "Traceback" not in done.err, done
    assert done.out == "" and done.err.startswith("error: "), done
    assert all(word in done.err.splitlines()[0] for word in words), done.err


@pytest.mark.parametrize("name", [*SCRIPTS, *TOOLS])
def test_a_misspelt_flag_is_named_with_the_nearest(script, name):
    shown = script(name, [*NEEDED.get(name, []), "--help-all"]).checked()
    assert max(map(len, shown.out.split("\n")[1:])) <= 80
    assert ("usage: python -m tools." in shown.out) == (name in TOOLS)
    flag = max(re.findall(r"^  (--[a-z0-9-]+)", shown.out, re.M), key=len)
    misspelt = flag[:5] + flag[6:]
    refused(script(name, [*NEEDED.get(name, []), misspelt, "5"]), misspelt, flag)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_preset_is_named_with_its_line(script, tmp_path, name):
    preset = tmp_path / "mine.toml"
    for text, words in [
        ("\nBATCH_SIZ = 8", ["mine.toml:2", "BATCH_SIZ", "nearest: BATCH_SIZE"]),
        ('BATCH_SIZE = "many"', ["mine.toml:1", "BATCH_SIZE", "'many'"]),
        ("\n\nBATCH_SIZE = -1", ["mine.toml:3", "BATCH_SIZE", "-1"]),
        ("BATCH_SIZE = ", ["mine.toml:1"]),
    ]:
        preset.write_text(text)
        refused(script(name, [*COMMAND.get(name, []), "--config", preset]), *words)
    refused(script(name, [*COMMAND.get(name, []), "--config", tmp_path / "mime.toml"]), "mine.toml")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("flag", "value"), [("--batch-size", "-1"), ("--batch-size", "8.5"), ("--precision", "fp8")]
)
def test_a_value_out_of_range_is_named_with_its_flag(script, name, flag, value):
    refused(script(name, [*COMMAND.get(name, []), flag, value]), flag, f"'{value}'")
