"""Every preset is accepted by the script it is for, and opens with the command that uses it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from petface.settings import read_settings
from tests.scripts import STAGE1

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "stage1": "train_resnet_minority_aug_dynamic",
    "stage2": "stage2_resnet_multi",
    "identity": "train_identity",
    "eval": "inference_engine",
    "audit": "tools.audit",
    "label_errors": "tools.find_label_errors",
    "export": "tools.export",
    "serve": "tools.serve",
}
PRESETS = sorted((ROOT / "configs").rglob("*.toml"))


def test_every_folder_of_presets_has_a_script_and_presets():
    assert {preset.parent.name for preset in PRESETS} == set(SCRIPTS)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_preset_loads_and_changes_something(preset):
    module = importlib.import_module(SCRIPTS[preset.parent.name])
    plain = read_settings(module, [])
    settings = read_settings(module, ["--config", str(preset)])
    assert settings.as_dict() != plain.as_dict()
    first_line = preset.read_text(encoding="utf-8").splitlines()[0]
    script = SCRIPTS[preset.parent.name]
    command = f"-m {script}" if script.startswith("tools.") else f"{script}.py"
    assert first_line.startswith(f"# python {command} ")
    assert f"configs/{preset.parent.name}/{preset.name}" in first_line


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_reference_is_the_file_as_it_is(stage):
    """Where a constant changes, the reference keeps the old value: then this list gets it."""
    module = importlib.import_module(SCRIPTS[stage])
    reference = read_settings(module, ["--config", f"{ROOT}/configs/{stage}/reference.toml"])
    changed = reference.as_dict().items() - read_settings(module, []).as_dict().items()
    assert {name for name, _ in changed} == {"RUN_NAME"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("inat_attention", [1, 1, 1]),
        ("snakes_efficientnet", [1, 1]),
        ("snakes_mobilenet_v3", [1, 1]),
        ("oxford_pets_resnet18", [2]),
    ],
)
def test_recipes_of_data_that_is_not_at_hand_train_two_epochs(tree, script, tmp_path, name, epochs):
    preset = ROOT / "configs" / "stage1" / f"{name}.toml"
    size = ["--image-size-px", 32, "--batch-size", 8, "--max-bad-fraction", 0.1, "--epochs"]
    flags = ["--config", preset, *tree.flags, "--runs-root", tmp_path, "--run-name", "run"]
    flags += ["--weights", "none", "--device", "cpu", "--num-workers", 0, *size, *epochs]
    done = script(STAGE1, flags).checked()
    assert done.figures()["epochs"] == str(sum(epochs))
    assert (tmp_path / "run" / "classes.csv").exists()
