"""The commands of the README run as they stand there, on a small dataset and for one epoch."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
LINKED = ("petface", "tools", "configs", "pyproject.toml", "requirements.txt")
SHORT = ["--epochs", "1", "--batch-size", "16"]
SCRIPTS = {
    "train_resnet_minority_aug_dynamic.py": SHORT,
    "stage2_resnet_multi.py": ["--phase-epochs", "1,1", *SHORT[2:]],
    "train_identity.py": [*SHORT, "--weights", "none", "--splits-file", "data/PetFace/splits.csv"],
    "inference_engine.py": [],
    "petface_command.py": ["--weights", "none", "--epochs", "1", "--image-size-px", "32"],
}
ONE_PHOTO = "data/demo/images/cat/000000/00.png"
PAGES = ("README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if p.stem != "log"))
SWITCHES = ("all", "check", "json")
SMALL = ["--image-size-px", "32"]


def commands(page: str = "README.md") -> list[str]:
    """Lines of a page's sh blocks that call python or petface, with comments cut off."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for line in "\n".join(blocks).split("\n")]
    lines = [re.sub("^petface ", "python petface_command.py ", line) for line in lines]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("python ")]


@pytest.fixture(scope="module")
def checkout(module_folder):
    """A folder that looks like a checkout, with 80 made-up animals where PetFace would be."""
    folder = module_folder
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in SCRIPTS:  # copies: a script's own folder is where its imports are found
        (folder / name).write_bytes((ROOT / name).read_bytes())
    arguments = ["--records", "80", "--size", "32", "--no-odd-files"]
    for name in ("PetFace", "demo"):
        run(folder, ["-m", "tools.make_demo_data", "--out", f"data/{name}", *arguments])
    (folder / "photo.png").write_bytes((folder / ONE_PHOTO).read_bytes())
    for path in sorted((folder / "data/demo/images").glob("[cd]*/*/*.png")):
        (folder / "my_pets" / path.parts[-3]).mkdir(parents=True, exist_ok=True)
        (folder / "my_pets" / path.parts[-3] / f"{path.parts[-2]}_{path.name}").symlink_to(path)
    return folder


def run(folder: Path, arguments: list[str]) -> str:
    """Run one command in `folder` and give what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def serve(folder: Path, arguments: list[str]) -> None:
    """Start the server, ask the page and a photo, and stop it as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    server = subprocess.Popen(
        [sys.executable, *arguments, "--port", "0"],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        ready = next((line for line in server.stdout if line.startswith("ready: ")), None)
        assert ready, server.stderr.read()
        url = ready.removeprefix("ready: ").strip()
        assert "<html" in httpx.get(url, trust_env=False, timeout=60).text
        photo = {"photo": (folder / "photo.png").read_bytes()}
        answer = httpx.post(f"{url}/predict", files=photo, trust_env=False, timeout=60).json()
        assert answer["species"]["label"]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("command", [c for p in PAGES for c in commands(p) if " -m pip " not in c])
def test_a_command_of_a_page_names_what_there_is(command):
    script, *arguments = shlex.split(command)[1:]
    if script == "-m":
        script = arguments.pop(0).replace(".", "/") + ".py"
    source = (ROOT / script).read_text(encoding="utf-8")
    for flag in (a.removeprefix("--") for a in arguments if a.startswith("--")):
        constant = rf"^{flag.replace('-', '_').upper()}: "
        assert re.search(constant, source, re.MULTILINE) or flag in ("config", "help", *SWITCHES)


@pytest.mark.slow  # seven minutes
def test_the_commands_of_the_readme_run_in_their_order(checkout):
    seen = set()
    for command in commands():
        arguments = shlex.split(command)[1:]
        script = arguments[0]
        if script == "-m":
            seen.add(arguments[1])
            if arguments[1] == "tools.serve":
                serve(checkout, arguments)
            elif arguments[1] == "tools.sweep":
                assert "best by val" in run(checkout, [*arguments, "EPOCHS=1"])
            elif arguments[1] not in ("tools.make_demo_data", "pip"):  # there already
                assert run(checkout, arguments)
            continue
        seen.add(script)
        small = SCRIPTS[script] + (SMALL if script in list(SCRIPTS)[:3] else [])
        assert run(checkout, [*arguments, *small])
    assert set(SCRIPTS) <= seen
    assert (checkout / "runs/petface/evaluation/petface_eval_summary.json").exists()
    assert (checkout / "runs/my_pets/stage1/best.pt").exists()
