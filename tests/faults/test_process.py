"""Streams, folders, limits and parents that let a script down: one line, and no work lost."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from petface import devices, errors, files, progress
from petface.errors import UserError
from tests import scripts
from tests.conftest import TINY_STAGE1
from tests.sameness import assert_same


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [
        ("return 3", 3, "asked to"),
        ("sys.exit(4)", 4, "asked to"),
        ("raise AssertionError", 1, "asked totaken apart"),
    ],
)
def test_a_script_ends_after_who_asked_to_be_called_and_takes_no_module_apart(main, code, said):
    text = f"""
import atexit, gc, sys
sys.modules["petface_command"] = sys  # as `petface` starts
from petface.errors import run_script
class Left:
    def __del__(self): print("taken apart", end="")
def main():
    assert gc.isenabled() and gc.get_freeze_count()
    {main}
left = Left()
atexit.register(print, "asked to", end="")
assert not gc.isenabled()
run_script(main)"""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=scripts.REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert bool(done.stderr) == (code == 1), done.stderr


def of_torch(name, text):
    return type(name, (RuntimeError,), {})(text)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/a"), ["/x/a: Perm", "choose a fo"]),
        (OSError(errno.EROFS, "Read-only file system", b"/x\xff"), ["Read-only", "rights"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 9999), ["aaa...aaa", "shorter"]),
        (OSError(errno.EMFILE, "Too many open files"), ["Too many open files", "ulimit -n"]),
        (OSError(errno.ESTALE, "Stale file handle", "/x/a"), ["/x/a: Stale", "same command"]),
        (OSError(errno.EXDEV, "Invalid", "a", None, "b"), ["a -> b: Invalid"]),
        (OSError("Caught OSError in worker\nTraceback (\n  x\nOSError: why"), ["OSError: why"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a\nb"), ["a\\nb: ", "a folder sho"]),
        (MemoryError(), ["not enough memory; lower BATCH_SIZE"]),
        (of_torch("OutOfMemoryError", "CUDA out of memory. Tried"), ["not enough memory (CUDA"]),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), ["not enough memory"]),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), ["not enough memory"]),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), ["not enough memory"]),
        (RuntimeError("CUDA error: unspecified launch failure"), ["CUDA error"]),
        (RuntimeError("can't start new thread"), ["start new thread"]),
        (RecursionError("maximum recursion depth exceeded"), ["nested too deeply"]),
        (ValueError("Exceeds the limit (4300 digits) for integer string"), ["Exceeds the limit"]),
        (ValueError("embedded null byte"), ["embedded null byte"]),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), ["torch", "requirements"]),
    ],
)
def test_what_the_machine_does_is_one_line_with_a_way_out(error, words, capsys, monkeypatch):
    assert errors.exit_code_of(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 800
    assert all(word in said for word in words), said
    kept = Path(said.rpartition("(traceback: ")[2].rstrip(")\n"))
    assert type(error).__name__ in kept.read_text()
    kept.unlink()
    monkeypatch.setenv("PETFACE_TRACEBACK", "1")
    errors.exit_code_of(error)
    said = capsys.readouterr().err
    assert type(error).__name__ in said and "(traceback: " not in said


@pytest.mark.parametrize(
    "error",
    [
        *(kind("a") for kind in (TypeError, AssertionError, KeyError, IndexError, AttributeError)),
        *(ValueError("shapes differ"), RuntimeError("size mismatch"), ZeroDivisionError("x")),
        RuntimeError("CUDA error: device-side assert triggered"),
        ImportError("cannot import name 'x'", name="petface.files"),
    ],
    ids=repr,
)
def test_a_fault_of_the_program_keeps_its_traceback(error, capsys):
    assert errors.exit_code_of(error) is None and capsys.readouterr().err == ""


def raise_at_the_beginning():
    """Have a fault of the program where a script begins."""
    from petface.settings import Settings

    Settings.provenance = lambda _: [][1]


def test_a_fault_of_the_program_is_shown_by_the_real_script(script, tree, tmp_path):
    done = script(scripts.STAGE1, [*tree.flags, "--runs-root", tmp_path], raise_at_the_beginning)
    assert done.code == 1 and "IndexError" in done.err and "Traceback" in done.err


# scripts in fresh interpreters: streams, and what stands in the way before the first line


def shell(line, cwd=scripts.REPOSITORY, **environment):
    """Run a line of bash; `$PY` is the interpreter, and `$S` the folder of the scripts."""
    names = {"PY": sys.executable, "S": str(scripts.REPOSITORY), **scripts.ENVIRONMENT}
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **names, **environment},
        timeout=scripts.PATIENCE_S,
    )
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return scripts.Result(done.returncode, out, err)


def test_missing_packages_and_ctrl_c_while_importing_are_one_line(tmp_path):
    for name, text in [
        ("torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"),
        ("torch", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"),
    ]:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").write_text(text)
        path = f"{tmp_path}:{scripts.REPOSITORY}"
        done = shell("$PY -m tools.sweep", PYTHONPATH=path)
        if "raise" in text:
            scripts.assert_refused(done, "No module named 'torch'", "python -m pip install -r")
        else:
            assert done.code in (130, -signal.SIGINT) and done.err.count("\n") == 2
            assert "stopped" in done.err


def test_too_little_memory_for_the_imports_is_one_line():
    done = shell("ulimit -v 1500000; $PY train_resnet_minority_aug_dynamic.py --help")
    assert done.code == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1


def test_a_reader_that_leaves_and_a_full_device_end_a_tool():
    command = "$PY tools/make_demo_data.py --help"
    done = shell(f"{command} | true; echo code ${{PIPESTATUS[0]}}")  # gone before the first line
    assert done.out == "code 141\n" and done.err == ""
    scripts.assert_refused(shell(f"{command} >/dev/full"), "standard output", "No space left")
    assert shell(f"{command} <&- >&- 2>&-").code == 0


@dataclass(frozen=True)
class Streams:
    """Have the streams of a shell's redirection, with another encoding and working folder."""

    out: str = "/dev/full"
    encoding: str = "ascii"
    gone: str = ""

    def __call__(self):
        import io

        for number in (1, 2) if self.out == "/dev/full" else (1,):
            if self.out == "closed pipe":
                (end, opened) = os.pipe()
                os.close(end)
            else:
                opened = os.open(self.out, os.O_WRONLY)
            os.dup2(opened, number)
        raw = io.FileIO(1, "w", closefd=False)
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(raw), self.encoding)
        if self.gone:
            Path(self.gone).mkdir()
            os.chdir(self.gone)
            Path(self.gone).rmdir()


def test_a_training_and_an_evaluation_outlive_their_readers(
    script, tree, stage1_run, evaluation_flags, evaluation_run, tmp_path
):
    flags = [*tree.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--run-name", "run"]
    full = Streams("/dev/full", gone=str(tmp_path / "gone"))
    assert script(scripts.STAGE1, flags, full).code == 0
    assert_same(stage1_run.folder, tmp_path / "run")
    flags = [*evaluation_flags, "--out-dir", tmp_path / "out"]
    assert script(scripts.INFERENCE, flags, Streams("closed pipe")).code == 0
    assert_same(evaluation_run.folder, tmp_path / "out")


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_names_print_escaped_where_the_encoding_lacks_them(script, tree, tmp_path, encoding):
    named, out = tree.copy(tmp_path / "data"), tmp_path / "out.txt"
    (named.images / "cat").rename(named.images / "ねこ")
    for path in named.root.glob("splits.*"):
        path.unlink()
    flags = [*named.flags, *TINY_STAGE1, "--runs-root", tmp_path, "--epochs", 1]
    out.touch()
    script(scripts.STAGE1, [*flags, "--run-name", "run"], Streams(str(out), encoding))
    assert b"\\u306d\\u3053" in out.read_bytes()
    assert (tmp_path / "run/final.json").exists()


def test_every_tool_refuses_a_place_it_cannot_write(script, tree, tmp_path):
    """A file where a folder should be, a name of 300 bytes, a file system that takes nothing."""
    (tmp_path / "file").touch()
    out = tmp_path / "file/x"
    for name, *arguments in [
        (scripts.STAGE1, *tree.flags, *TINY_STAGE1, "--runs-root", out),
        (scripts.STAGE1, *tree.flags, *TINY_STAGE1, "--runs-root", tmp_path / ("a" * 300)),
        (scripts.PACK, "--images-root", tree.images, "--out", out / "a.bin"),
        (scripts.PACK, "--images-root", tree.images, "--out", "/proc/x/a.bin"),
        ("tools/audit.py", *tree.flags, "--out", out),
        ("tools/make_demo_data.py", "--records", 60, "--size", 32, "--out", out),
        ("tools/prepare_data.py", "image_folder", "--source", tree.images, "--out", out),
    ]:
        done = script(name, arguments)
        assert done.code in (1, 2) and "Traceback" not in done.err, (name, done)
        assert done.err.count("error: ") == 1, (name, done.err)


@pytest.mark.parametrize(("name", "value"), [("RLIMIT_FSIZE", 20_000), ("RLIMIT_NOFILE", 24)])
def test_limits_of_the_system_are_one_line(script, tree, tmp_path, name, value):
    flags = [*tree.flags, *TINY_STAGE1, "--epochs", 1, "--runs-root", tmp_path]
    done = script(scripts.STAGE1, flags, partial(scripts.limit, name, value))
    assert "Traceback" not in done.err
    assert done.code == 0 or done.message, done


# no locks


def test_without_locks_there_is_one_warning_and_nobody_is_refused(tmp_path, monkeypatch, capsys):
    numbers = iter([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])

    def flock(*_):
        number = next(numbers)
        raise OSError(number, os.strerror(number))

    with (tmp_path / "a").open("ab", 0) as first, (tmp_path / "a").open("ab", 0) as second:
        assert files.take(first) == "" and files.take(second) == f"process {os.getpid()}"
        monkeypatch.setattr("fcntl.flock", flock)
        monkeypatch.setattr(files, "_has_warned", False)
        assert files.take(first) == files.take(second) == files.take(first) == ""
    with files.turn_in(tmp_path, wait=False):
        pass
    assert next(numbers, "all") == "all"
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and os.strerror(errno.ENOLCK) in said
    assert str(tmp_path) in said


def test_a_folder_that_is_held_is_refused(tmp_path):
    with files.turn_in(tmp_path), pytest.raises(UserError, match="in use by process"):
        files.turn_in(tmp_path, wait=False).__enter__()


# containers


@pytest.mark.parametrize(
    ("written", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "junk", "cpu/cpu.cfs_period_us": "0"}, 64),
        ({}, 64),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, written, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in written.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    quota = devices._cpu_quota(tmp_path)
    monkeypatch.setattr(devices, "_cpu_quota", lambda: quota)
    assert devices.num_cores() == cores


def test_a_log_has_lines_now_and_then_and_no_carriage_returns(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    for leave in (True, False):
        with progress.progress(total=40, desc="pack", leave=leave) as bar:
            for _ in range(40):
                time.sleep(0.005)
                bar.update(1)
        said = capsys.readouterr().err
        lines = said.splitlines()
        assert "\r" not in said and 2 <= len(lines) <= 8, said
        assert all(line.startswith("pack: ") and "img" in line for line in lines), said
