"""The lock file holds what the requirements name, and nothing that one machine alone can reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import scripts

LOCK = (scripts.REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((scripts.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
NOT_LOCKED = {"heic", "search", "track"}  # for some wishes only


def wanted():
    """What requirements.txt and the extra `dev` name, and the extras that it refers to."""
    lines = (scripts.REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    todo = ["dev"]
    while todo:
        for requirement in map(Requirement, EXTRAS[todo.pop()]):
            if requirement.name == "petface":
                todo += requirement.extras
            else:
                found.append(requirement)
    return found


def test_every_extra_is_locked_or_one_of_those_that_are_not():
    (whole,) = (r for r in map(Requirement, EXTRAS["dev"]) if r.name == "petface")
    assert set(EXTRAS) == {"dev", *whole.extras, *NOT_LOCKED}


def test_every_requirement_is_in_the_lock_with_its_version_and_checksums():
    for requirement in wanted():
        (pin,) = requirement.specifier  # one version
        name = f"{canonicalize_name(requirement.name)}=={re.escape(pin.version)}"
        assert re.search(rf"^{name}[ ;].*\n +--hash=", LOCK, re.M), (
            f"{requirement}: run `make lock`"
        )
    entries = re.findall(r"^\w.*(?:\n +--hash=sha256:[0-9a-f]{64}(?: \\)?)*", LOCK, re.M)
    assert len(entries) > 50 and all("==" in e and "--hash" in e for e in entries)


def test_an_install_line_names_an_extra_that_is_there():
    code = [*scripts.REPOSITORY.glob("petface/**/*.py"), *scripts.REPOSITORY.glob("tools/*.py")]
    pattern = r"install_line\(['\"](\w+)"
    named = {extra for path in code for extra in re.findall(pattern, path.read_text())}
    assert named and named <= set(EXTRAS)


def test_the_lock_names_no_host_and_no_path():
    assert not re.search(r"://|^-|@ |file:|\s/|index|find-links|trusted", LOCK, re.M)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_from_the_lock_with_checksums(tmp_path):
    done = subprocess.run(
        ["make", "--dry-run", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/ready"],
        cwd=scripts.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--require-hashes -r requirements.lock" in done.stdout


def test_what_was_mended_for_security_is_in_the_lock():
    floors = {"pillow": "12", "onnx": "1.16", "python-multipart": "0.0.18", "starlette": "0.49.1"}
    for name, floor in floors.items():
        (found,) = re.findall(rf"^{name}==([^ ;]+)", LOCK, re.M)
        assert Version(found) >= Version(floor), name
