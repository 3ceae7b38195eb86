"""The table of layers: what may import what, read from the files, and how long things may be."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "petface"
TRAINERS = ("train_resnet_minority_aug_dynamic", "stage2_resnet_multi", "train_identity")
SCRIPTS = (*TRAINERS, "inference_engine")

# A line imports only the lines above it; within a line, files may import each other, in no cycle.
LAYERS = (
    (
        *("errors", "files", "settings", "distributed", "taxonomy", "metrics", "calibration"),
        *("resumable", "devices", "sureness", "progress"),
    ),
    ("data",),
    ("models",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("analysis",),
    ("identity",),
    ("report",),
    ("export",),
    ("serving",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

# Lines of all text files; who needs more names what goes.
BUDGETS = {
    "petface": 15_000,
    "foundations": 1_700,  # the files of petface/ itself, and settings/
    "petface/data": 2_700,
    "petface/models": 1_300,
    "petface/training": 2_300,
    "petface/inference": 1_200,
    "petface/evaluation": 1_300,
    "petface/analysis": 1_500,
    "petface/identity": 900,
    "petface/report": 1_200,
    "petface/export": 500,
    "petface/serving": 1_300,
    "tools": 2_500,
    "tests": 16_000,
}
MAX_LINES = {"script": 400, "module": 400, "README.md": 120}
STAGE1_LOADS = 8_000
TEXT = {".py", ".html", ".jinja", ".j2", ".js", ".css", ".svg", ".md"}

# Where the house is still too big: lines today. These only ever get fewer.
OVER_BUDGET: dict[str, int] = {
    "stage 1 loads": 9622,
    "petface": 20869,
    "foundations": 2834,
    "petface/data": 3583,
    "petface/models": 1816,
    "petface/training": 3161,
    "petface/inference": 1520,
    "petface/evaluation": 1336,
    "petface/report": 2018,
    "petface/serving": 1724,
    "tools": 2631,
    "tests": 25774,
}


def name_of(path: Path) -> str:
    """The dotted name of a module of the package."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
NAMES = {name_of(path): path for path in MODULES}
IDS = list(NAMES)


def imports_of(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Every module that a file imports, with dots as written."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(own: str, imported: set[str]) -> list[str]:
    """What a module imports although it stands in a lower line of the table, or in none."""
    room = own.split(".")[1]
    rooms = {name: name.split(".")[1] for name in imported if name.startswith("petface.")}
    return sorted(
        {
            f"{own} imports {other}"
            for name, other in rooms.items()
            if other in LAYER_OF and LAYER_OF[other] > LAYER_OF[room]
        }
    )


@pytest.mark.parametrize("name", IDS)
def test_a_module_imports_only_the_layers_above_it(name):
    assert name.split(".")[1] in LAYER_OF, f"{name} stands in no layer: give it a place"
    assert violations(name, imports_of(NAMES[name])) == []


@pytest.mark.parametrize(
    "text",
    [
        "from petface import training",
        "from petface.training import epoch",
        "from petface.training.epoch import Job",
        "import petface.training.epoch as e",
        "def f():\n    from petface.training import epoch",
    ],
)
def test_the_check_finds_every_way_to_import(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text)
    for own in ("petface.taxonomy", "petface.data.pack", "petface.models.network"):
        assert len(violations(own, imports_of(path))) == 1
    assert violations("petface.training.epoch", imports_of(path)) == []
    assert violations("petface.inference.stages", imports_of(path)) == []


def test_no_module_imports_itself_through_others():
    arrows = {
        name: {n for n in imports_of(path, inside_functions=False) if n in NAMES and n != name}
        for name, path in NAMES.items()
    }
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert arrows == {}


@pytest.mark.parametrize("name", IDS)
def test_the_package_never_imports_a_script_or_a_tool(name):
    roots = {imported.split(".")[0] for imported in imports_of(NAMES[name])}
    assert not roots & {*SCRIPTS, "tools", "tests"}


def test_only_tools_import_the_inference_engine_and_nobody_a_trainer():
    for script in SCRIPTS:
        roots = {name.split(".")[0] for name in imports_of(REPOSITORY / f"{script}.py")}
        assert not roots & {*SCRIPTS, "tools", "tests"}, script
    for path in (REPOSITORY / "tools").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {*TRAINERS, "tests"}, path


def num_lines(path: Path) -> int:
    """Count the lines of a text file."""
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("folder", BUDGETS)
def test_a_folder_keeps_its_budget(folder):
    places = [(REPOSITORY / folder).rglob("*")]
    if folder == "foundations":
        places = [PACKAGE.glob("*"), (PACKAGE / "settings").glob("*")]
    files = (path for place in places for path in place if path.suffix in TEXT)
    lines = sum(num_lines(path) for path in files)
    assert lines <= max(BUDGETS[folder], OVER_BUDGET.get(folder, 0))


def loaded_by(script: str) -> set[str]:
    """The modules of the package that a script loads when it starts."""
    seen: set[str] = set()
    todo = [REPOSITORY / f"{script}.py"]
    while todo:
        for name in imports_of(todo.pop(), inside_functions=False):
            while name:
                if name in NAMES and name not in seen:
                    seen.add(name)
                    todo.append(NAMES[name])
                name = name.rpartition(".")[0]
    return seen


def test_stage_1_loads_little():
    lines = sum(num_lines(NAMES[name]) for name in loaded_by(SCRIPTS[0]))
    assert lines <= max(STAGE1_LOADS, OVER_BUDGET.get("stage 1 loads", 0))


def test_loading_processes_do_without_pandas():
    """30 MB and 0.2 s of each of them."""
    paths = [NAMES[name] for name in loaded_by("petface/data/loading")]
    assert len(paths) > 5
    assert not [path for path in paths if "pandas" in imports_of(path, inside_functions=False)]


def test_files_keep_a_livable_size():
    limits = dict.fromkeys(MODULES, MAX_LINES["module"])
    limits |= {REPOSITORY / f"{script}.py": MAX_LINES["script"] for script in SCRIPTS}
    limits[REPOSITORY / "README.md"] = MAX_LINES["README.md"]
    long = {str(p.relative_to(REPOSITORY)): num_lines(p) for p, n in limits.items()}
    over = {
        name: n
        for (name, n), limit in zip(long.items(), limits.values(), strict=True)
        if n > max(limit, OVER_BUDGET.get(name, 0))
    }
    assert over == {}
