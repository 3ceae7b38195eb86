"""The table of layers: what may import what, read from the files, and how long a file may be."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "petface"
SCRIPTS = ("train_resnet_minority_aug_dynamic", "stage2_resnet_multi", "inference_engine")

# A line may import the lines above it. Within a line nothing imports its neighbour; inside the
# folders (`FOLDERS`) the files may import each other.
LAYERS = [
    {"errors", "installed", "png"},
    {"files", "distributed", "ahead", "board"},
    {"taxonomy", "settings", "devices", "folding", "signal_stack", "stopping"},
    {
        "images",
        "catalog",
        "losses",
        "augment",
        "schedule",
        "averaging",
        "metrics",
        "models",
        "duplicates",
        "reliability",
        "guard",
        "label_errors",
        "probes",
    },
    {
        "sources",
        "annotations",
        "splits",
        "sampling",
        "checkpoints",
        "network",
        "openvino_network",
    },
    {"dataset", "batches", "runs", "gradcam", "exported", "views", "preparing", "first_weights"},
    {"pack", "recipe", "folds"},
    {"packing"},
    {"photo_samples", "lockstep", "measure"},
    {"engine", "engines", "calibration", "features", "strangers", "reports"},
    {"stage_models", "phases"},
    {"two_stage"},
    {"export", "serving", "predictions"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
FOLDERS = {"augment", "models", "settings", "sources", "reports", "export", "serving"}

MAX_LINES = {"trainer": 440, "module": 300}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions, with dots as written."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    """The name that the table has for a file: its own, or that of its folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def violations(own: str, imported: set[str]) -> list[str]:
    """What a part of the package imports although it does not stand above it."""
    parts = {name.split(".")[1] for name in imported if name.startswith("petface.")}
    return [
        f"{own} (layer {LAYER_OF[own]}) imports {other} (layer {LAYER_OF[other]})"
        for other in sorted(parts & LAYER_OF.keys())
        if LAYER_OF[other] >= LAYER_OF[own] and not (other == own and own in FOLDERS)
    ]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_imports_only_the_layers_above_it(path):
    assert part_of(path) in LAYER_OF, f"{path} stands in no layer: give it a place in the table"
    assert violations(part_of(path), imports_of(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "from petface import engine",
        "from petface.engine import Job",
        "import petface.engine as e",
        "def f():\n    from petface import engine",
    ],
)
def test_the_check_finds_every_way_to_import(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text)
    for own in ("taxonomy", "runs", "engine", "reports"):
        assert len(violations(own, imports_of(path))) == 1
    assert violations("reports", {"petface.reports.tables", "petface.runs"}) == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_the_package_never_imports_a_script_or_a_tool(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {*SCRIPTS, "tools", "tests"}


def test_only_tools_import_the_inference_engine_and_nobody_a_trainer():
    for script in SCRIPTS:
        roots = {name.split(".")[0] for name in imports_of(REPOSITORY / f"{script}.py")}
        assert not roots & {*SCRIPTS, "tools", "tests"}, script
    for path in (REPOSITORY / "tools").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {*SCRIPTS[:2], "tests"}, path


def test_files_keep_a_livable_size():
    limits = dict.fromkeys(MODULES, MAX_LINES["module"])
    limits |= {REPOSITORY / f"{script}.py": MAX_LINES["trainer"] for script in SCRIPTS[:2]}
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    long = {str(p.relative_to(REPOSITORY)): n for p, n in lengths.items() if n > limits[p]}
    assert long == {}
