"""Pages and pictures of runs and evaluations: a leaf that nothing above loads when it starts.

Jinja2 and matplotlib are the extra `report`; without them a line says so and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from petface.errors import install_line


def write_report(folder: Path, *, with_photos: bool = False, images_root: str = "") -> Path:
    """Write report.html of a run or an evaluation, and the pictures of a run.

    A folder that is both is reported as the evaluation. Photos: see `write_evaluation_report`.
    """
    from petface.report import evaluation_page, folders, run_page

    if not folders.is_evaluation(folder):
        return run_page.write_run_report(folder, with_photos=with_photos)
    return evaluation_page.write_evaluation_report(
        folder, with_photos=with_photos, images_root=images_root
    )


def write_reports(
    roots: Sequence[Path], *, with_photos: bool = False, images_root: str = ""
) -> tuple[list[Path], list[str]]:
    """Write the report of every run and evaluation below `roots`: the pages, and what failed."""
    from petface.report.folders import find_folders

    written: list[Path] = []
    failures: list[str] = []
    for folder in dict.fromkeys(folder for root in roots for folder in find_folders(root)):
        try:
            written.append(write_report(folder, with_photos=with_photos, images_root=images_root))
        except Exception as error:  # one strange folder must not keep the others from theirs
            failures.append(f"{folder}: no report, {_reason(error)}")
    return written, failures


def report_line(folder: Path) -> str:
    """Write the report of one folder and return the line that says where it is, or why not.

    Never raises: what was trained or measured is finished by then.
    """
    try:
        return f"report: {write_report(Path(folder))}"
    except Exception as error:
        return f"report: not written, {_reason(error)}"


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error.name} is missing; install it: {install_line('report')}"
    return f"{type(error).__name__}: {error}"


def late_report(folder: Path) -> str:
    """Write the report of a folder that was stopped between its last number and its report.

    What is finished is never started again, so whoever finds it finished calls this. Returns the
    line that says so, with line breaks around it; "" where nothing is missing.
    """
    from petface.evaluation.details import PER_IMAGE

    is_finished = any((Path(folder) / name).is_file() for name in ("final.json", PER_IMAGE))
    if not is_finished or (Path(folder) / "report.html").is_file():
        return ""
    return f"\n{report_line(folder)}\n"
