"""The notebook runs from its first cell to its last, on a smaller dataset."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from tests import scripts

NOTEBOOK = scripts.REPOSITORY / "docs/petface.ipynb"
LINKED = ("petface", "tools", "configs", "petface_command.py")
SHORTER = {'"--records", 200': '"--records", 60', '"--epochs", 8': '"--epochs", 1'}


@pytest.mark.slow  # half a minute
def test_every_cell_of_the_notebook_runs(tmp_path):
    code = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            lines = ast.parse("".join(cell["source"])).body
            shown = lines.pop() if isinstance(lines[-1], ast.Expr) else None
            code += [ast.unparse(line) for line in lines]
            code += [f"print({ast.unparse(shown)})"] if shown else []
    text = "\n".join(code).replace("'", '"')
    for before, after in SHORTER.items():
        assert before in text
        text = text.replace(before, after)
    for name in (*LINKED, scripts.STAGE1, scripts.STAGE2, scripts.INFERENCE):
        (tmp_path / name).symlink_to(scripts.REPOSITORY / name)
    (tmp_path / "cells.py").write_text(text, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "val_balanced_accuracy_frac" in done.stdout and "species_pred" in done.stdout
