"""The run folder: one holder at a time, never overwritten by accident; and how a run is stopped."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from petface import distributed, files
from petface.data.annotations import SpeciesAnnotations, write_conflicts
from petface.data.catalog import Catalog
from petface.data.fingerprint import Data, changes, contaminated, notes_on
from petface.errors import UserError, optional_room
from petface.models import checkpoints
from petface.training.records import Tracking, environment

_WRITTEN = (".pt", ".csv", ".json", ".png", ".txt", ".html", files.TEMPORARY_SUFFIX)
SWITCHES = {
    "force": "replace the finished run of this name; after a stop the same command resumes",
    "extend": "continue the finished run of this name, with a higher limit of epochs or patience",
}
_FORCED = "forced.txt"
NO_TRACKING = Tracking()
FEW_BAD = 2  # images that cannot be read never end a run of a few dozens
_COPY_S = 5.0  # between two signals that count as one under torchrun


class RunFolder:
    """A folder that this process holds; see `open_run`."""

    is_one_of_many = False  # as of stage 2: prints little, a table at the end has the metrics
    later = 0.0  # how many times its work the others of them may be that follow
    tracking = NO_TRACKING  # the first process's alone
    global_batch_size = 0  # images of a step over all processes
    data: Data | None = None

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        self.last = path / f"{prefix}last.pt"
        self.best = path / f"{prefix}best.pt"

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Write a checkpoint with its data; when this returns, every process can read it."""
        if distributed.is_main():
            checkpoints.save(path, content if self.data is None else {**content, "data": self.data})
        distributed.barrier()

    def save_last(self, content: dict[str, Any]) -> None:
        """Write what an exact resume needs."""
        self.save(self.last, {**content, "global_batch_size": self.global_batch_size})

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Write `metrics.csv`, one row per epoch; the columns are the keys of the first row."""
        if history and distributed.is_main():
            rows = [[row.get(key, "") for key in history[0]] for row in history]
            files.write_csv(self.path / "metrics.csv", list(history[0]), rows)

    def write_conflicts(self, annotations: Iterable[SpeciesAnnotations]) -> None:
        """Write `label_conflicts.csv`: rows of one animal that contradict each other."""
        if distributed.is_main():
            write_conflicts(self.path / "label_conflicts.csv", annotations)

    def finish(self, summary: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """Write `final.json`, which marks the run as finished, and the report; print the summary.

        A value of the summary that is NaN becomes null: accuracies are, without a known label.
        """
        summary = {**summary, **self.doubts()}
        known = {k: None if isinstance(v, float) and v != v else v for k, v in summary.items()}
        files.write_json(self.path / "final.json", {**known, **details})
        for key, value in () if self.is_one_of_many else summary.items():
            print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")
        print(report_line(self.path))

    def doubts(self) -> dict[str, str]:
        """Return what forbids to call the test split unseen, by the name of the doubt."""
        if self.data is None:
            return {}
        test, unknown = self.data["records"]["test"].numpy(), ", ".join(self.data["unknown"])
        num = int(np.isin(test, self.data["inherited"].numpy()).sum())
        found = {"contaminated": contaminated(num, len(test))} if num else {}
        return found | ({"not_known_what_was_learnt_by": unknown} if unknown else {})


def run_path(root: str, name: str) -> Path:
    """Join a run's name to the folder of runs; absolute names and `..` are refused."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"run name {name!r} must be a plain name inside {root}")
    return Path(root, name)


@contextmanager
def open_run(
    path: Path,
    settings: str,
    *,
    may_change: Collection[str] = (),
    limits: Collection[str] = (),
    describe: Callable[[], Data] | None = None,
    global_batch_size: int = 0,
    tracking: Tracking = NO_TRACKING,
    switches: Collection[str] = (),
    prefix: str = "",
) -> Iterator[RunFolder]:
    """Hold a run folder: create it, or resume an unfinished run of equal settings and data.

    `settings` is the text of its settings.toml; a resumed run may differ in what `may_change`
    names, and in `limits`, places among them, where its data is the same. `describe` returns the
    fingerprint of the data. `global_batch_size`, the images of a step over all processes, must
    stay: 0 = not checked. `prefix` comes before the names of last.pt and best.pt. Of several
    processes the first one holds the folder for all.

    Raises `UserError`, before anything is written, where another process holds it, and for a
    finished run or other settings or data, unless `switches` hold "extend", which goes on from a
    finished one, or "force", which deletes both.
    """
    run = RunFolder(path, prefix)
    run.global_batch_size = global_batch_size
    if not distributed.is_main():
        distributed.barrier()
        yield run
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileIO(path / "run.lock", "a+")
    except OSError as error:
        raise files.write_error(path / "run.lock", error) from error
    tracking.check()
    run.tracking = tracking
    with lock:
        _hold(lock, path)
        refuse_finished(path, switches)
        is_finished = (path / "final.json").exists()
        run.data = describe() if describe else None
        if "force" in switches and is_finished:
            _clear(path)
        elif is_finished or run.last.exists():
            try:
                _refuse_another(run, settings, may_change, limits)
            except UserError:
                if "force" not in switches:
                    raise
                _clear(path)
        (path / "final.json").unlink(missing_ok=True)
        for name, told in run.doubts().items():
            print(f"{name}: {told}; the test split is not unseen by the first weights")
        with files.atomic_write(path / "settings.toml", "w") as handle:
            handle.write(settings)
        files.write_json(path / "environment.json", environment())
        distributed.barrier()
        yield run


def refuse_finished(path: Path, switches: Collection[str]) -> None:
    """Raise `UserError` for a finished run unless a switch says what becomes of it.

    Its report is written first where a stop came just before it.
    """
    print(late_report(path), end="")
    if (path / "final.json").exists() and not {"force", "extend"} & {*switches}:
        raise UserError(
            f"{path} holds a finished run; choose another RUN_NAME, or --force to replace it, "
            "or --extend with more epochs or patience to continue it"
        )


def replace_finished(folders: Sequence[Path]) -> None:
    """Delete the finished runs that a --force replaces, once: a note beside them says so."""
    note, wanted = folders[0].parent / _FORCED, "".join(f"{folder.name}\n" for folder in folders)
    if not distributed.is_main() or (note.exists() and note.read_text("utf-8") == wanted):
        return
    for folder in folders:
        if (folder / "final.json").exists():
            with FileIO(folder / "run.lock", "a+") as lock:
                _hold(lock, folder)
                _clear(folder)
    with files.atomic_write(note, "w") as handle:
        handle.write(wanted)


def end_of_force(folders: Sequence[Path]) -> None:
    """Forget `replace_finished` once all runs are finished."""
    if all((folder / "final.json").exists() for folder in folders):
        (folders[0].parent / _FORCED).unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Delete what a run wrote: first what says that it is finished, then what it resumes from."""
    written = [file for file in path.iterdir() if file.suffix in _WRITTEN]
    for file in (path / "final.json", *path.glob("*last.pt"), *written):
        file.unlink(missing_ok=True)


def _hold(lock: FileIO, path: Path) -> None:
    if holder := files.take(lock):
        lock.seek(0)
        holder = lock.read().decode("utf-8", "replace").strip() or holder
        raise UserError(f"{path} is in use by {holder}; wait for it or take another name")
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode())
    except OSError as error:
        raise files.write_error(path / "run.lock", error) from error


def _refuse_another(
    run: RunFolder, settings: str, may_change: Collection[str], limits: Collection[str]
) -> None:
    """Raise `UserError` where the run in the folder was not started as this one."""
    unfinished, new = f"{run.path} holds an unfinished run with", "--force for a new run"
    wanted, last = run.global_batch_size, checkpoints.load(run.last)
    saved = last.get("global_batch_size", wanted)
    if wanted and saved != wanted:
        raise UserError(
            f"{unfinished} {saved} images a step; this would take {wanted}, in "
            f"{distributed.world_size()} processes together; change BATCH_SIZE or the processes, "
            f"take another RUN_NAME, or {new}"
        )
    try:
        before = tomllib.loads((run.path / "settings.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # lost or damaged: nobody can tell what it was
        raise UserError(
            f"{run.path} holds {run.last.name} but no settings.toml that can be read ({error}); "
            f"take another RUN_NAME, or {new}"
        ) from error
    begun, now = checkpoints.fingerprint_in(run.last, last), tomllib.loads(settings)
    changed = {
        name: f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in may_change
    }
    allowed = [changed.pop(name) for name in limits if begun and name in changed]
    if changed:
        raise UserError(
            f"{unfinished} other settings ({'; '.join(changed.values())}); to resume it use "
            f"--config {run.path / 'settings.toml'}, another RUN_NAME, or {new}"
        )
    if not (begun and run.data):
        return
    if found := changes(begun, run.data):
        raise UserError(
            f"{unfinished} other data: {'; '.join(found)}. Put back what it began with (copies "
            f"keep their times with cp -a), take another RUN_NAME, or {new}"
        )
    for told in (*allowed, *notes_on(begun, run.data)):
        print(f"resuming with another {told}")
    run.data |= {"inherited": begun["inherited"], "unknown": begun["unknown"]}


class FailureLog:
    """The images that could not be used, each once; too many of them stop the run.

    `num_images` is the number of images that the run works on; above `max_bad_frac` of it, and
    above `FEW_BAD` unless that is 0, `add` writes `errors.csv` and raises `UserError`.
    """

    def __init__(
        self, run: RunFolder, catalog: Catalog, num_images: int, max_bad_frac: float
    ) -> None:
        self._run = run
        self._catalog = catalog
        self._limit = max(num_images * max_bad_frac, FEW_BAD) if max_bad_frac else 0.0
        self.messages: dict[int, str] = {}  # by place in the catalog

    def add(self, failures: Sequence[tuple[int, str]]) -> None:
        """Note (catalog place, message) pairs; known places are not counted again."""
        self.messages.update(failures)
        if len(self.messages) > self._limit:
            self.write()
            message = failures[-1][1] if failures else max(self.messages.items())[1]
            raise UserError(
                f"{len(self.messages)} images could not be read, more than MAX_BAD_FRACTION allows "
                f"({self._limit:.0f}); the last: {message}. Mend or remove them, or raise the limit"
            )

    def write(self) -> None:
        """Write the run's `errors.csv`, a row per image."""
        if distributed.is_main():
            files.write_csv(self._run.path / "errors.csv", ("species", "message"), self.rows())

    def rows(self) -> list[tuple[str, str]]:
        """(species, message) per image, in catalog order."""
        species, of = self._catalog.classes, self._catalog.class_index
        return [(species[of[place]], text) for place, text in sorted(self.messages.items())]

    def per_species(self) -> dict[str, int]:
        """Number of unusable images per species, only those above 0."""
        return dict(Counter(species for species, _ in self.rows()))


class StopRequest:
    """While entered, SIGINT, SIGTERM and a hang-up only ask to stop; a second one leaves at once.

    The wish is obeyed between two steps, in all processes at once.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._noted_at = 0.0
        self._answers: Callable[[], list[list[float]]] = lambda: [[0]]  # of all, when last asked
        self._is_over = False  # nothing is left that a signal must wait for
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            # a launcher may send its own copy of a signal that went to every process
            if distributed.local_rank() is None or time.monotonic() - self._noted_at > _COPY_S:
                os._exit(128 + number)
            return
        self.signal_number, self._noted_at = number, time.monotonic()
        if self._is_over:
            self.leave_at_once()
        if distributed.shows():
            print("\nstopping after this step; once more to leave at once", file=sys.stderr)

    def asked(self) -> bool:
        """Check whether a signal has come to any process; all must ask at the same place.

        Several processes answer one call later, so that none waits for the others.
        """
        before, self._answers = self._answers, distributed.begin_gather(self.signal_number or 0)
        answers = self._answers if distributed.world_size() == 1 else before
        asked = int(max(numbers[0] for numbers in answers()))
        if asked:  # not where nobody was: one may have come since
            self.signal_number = self.signal_number or asked
        return asked > 0

    def leave(self, where: str) -> int:
        """Print where the run stops; return the exit code."""
        print(f"stopped {where}; the same command resumes there")
        return self.exit_code

    def leave_at_once(self) -> None:
        """Let a signal end the process from here on, or now: what is left can be done anew."""
        self._is_over = True
        if self.signal_number is not None:
            print("\nstopped; the same command resumes there", file=sys.stderr)
            sys.exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, 0 if nobody asked."""
        return 128 + self.signal_number if self.signal_number is not None else 0


def report_line(folder: Path) -> str:
    """Write the report of a finished folder; return the line that says where it is, or why not."""
    report = optional_room("report")
    return report.report_line(folder) if report else "no report: petface/report is not here"


def late_report(folder: Path) -> str:
    """Write the report of a folder that was stopped just before it; "" where none is missing."""
    report = optional_room("report")
    return report.late_report(folder) if report and distributed.is_main() else ""
