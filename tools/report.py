"""Write a page for every training run and evaluation, and an index over them.

    python -m tools.report                           # everything under RUNS_ROOT
    python -m tools.report runs/demo/evaluation --with-photos

Writes <run>/report.html with curves.png and confidence.png, <evaluation>/report.html with its error
analysis, and <RUNS_ROOT>/index.html. Pages open without a network and run no script. They show
photos of real animals only --with-photos, because such a page must not be passed on; made-up photos
always. About 1 s for a run and 3 s for an evaluation on one CPU core. Needs the extra `report`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petface.errors import UserError, run_script
from petface.report import write_reports
from petface.report.folders import find_folders
from petface.report.tool_pages import write_index
from petface.settings import read_settings

RUNS_ROOT: str = "runs"  # the index stands here and covers what is below
IMAGES_ROOT: str = ""  # "" = where each evaluation found the photos; only --with-photos
WITH_PHOTOS: bool = False  # of real animals: small copies of test photos and mistakes


def main() -> int:
    words = "folders", "runs, evaluations or folders of them; without any, RUNS_ROOT"
    s = read_settings(sys.modules[__name__], positional=words)
    root, folders = Path(s.RUNS_ROOT), [Path(name) for name in s.positional]
    for folder in folders or [root]:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; train a run or name another")
        if folders and not any(find_folders(folder)):
            raise UserError(f"{folder} is no run or evaluation, and none lies below it")
    how = {"with_photos": s.WITH_PHOTOS, "images_root": s.IMAGES_ROOT}
    written, failures = write_reports(folders or [root], **how)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print("\n".join([*(f"report: {path}" for path in written), f"reports: {len(written)}"]))
    if root.is_dir():
        print(f"index: {write_index(root)}")
    return int(bool(failures))


if __name__ == "__main__":
    run_script(main)
