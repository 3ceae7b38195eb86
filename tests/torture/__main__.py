"""The proof of the promise that nothing breaks it and nothing is lost.

    python -m tests.torture                                   # everything
    python -m tests.torture --only kills disk                 # some parts
    python -m tests.torture --only kills --records 900        # at the size of `make demo`
    python -m tests.torture --num-kills 5 --soak-seconds 60   # a shorter look

Made-up data only, in a temporary folder. Each part prints its rows as they are done, and all of
them stand in one table at the end; exit code 1 where anything went wrong. What chance decides
hangs on SEED, but for the moments of kills, which hang on the machine's speed too.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from petface.errors import run_script
from petface.settings import Positive, PositiveFloat, Seed, Settings, read_settings
from tests.torture import programs
from tests.torture.fixtures import Workshop
from tests.torture.fuzz import Outcome, fuzz_apart, table
from tests.torture.requests import torture_page
from tests.torture.server import torture_load, torture_soak

# ---- What is done ----
ONLY: tuple[
    Literal[
        "kills", "images", "csv", "settings", "splits", "checkpoints", "crafted", "pickles",
        "bundles", "packs", "requests", "disk", "two_processes", "resume", "soak", "server",
    ],
    ...,
] = ()  # fmt: skip  # parts; () = all
PROGRAMS: tuple[
    Literal["stage1", "stage2", "pack", "evaluate", "predict", "splits", "report"], ...
] = ()  # of kills, disk, two_processes and resume; () = all that a part knows
SEED: Seed = 0

# ---- How much ----
NUM_KILLS: Positive = 60  # of each program
NUM_IMAGES: Positive = 6000
NUM_CSV: Positive = 500
NUM_CHECKPOINTS: Positive = 300
NUM_CRAFTED: Positive = 150
NUM_PACKS: Positive = 450  # damaged at random, and as many that are sealed again
NUM_SETTINGS: Positive = 240
NUM_SPLITS: Positive = 240
NUM_PICKLES: Positive = 300
NUM_BUNDLES: Positive = 180
NUM_REQUESTS: Positive = 300
NUM_STOPS: Positive = 10  # steps at which a training is stopped and goes on
SOAK_SECONDS: PositiveFloat = 900.0
SERVER_SECONDS: PositiveFloat = 60.0  # of a load, then floods, then the load again

# ---- The made-up data ----
RECORDS: Positive = 300  # animals; 900 as in `make demo`
IMAGE_SIZE_PX: Positive = 64
EPOCHS: Positive = 2  # of stage 1, and of the first phase of stage 2
SPECIES: tuple[str, ...] = ("cat", "hamster")  # that get a specialist
FOLDER: str = ""  # for everything that is written; "" = a temporary one
Rows = Iterator[Outcome]


def main() -> int:
    s = read_settings(sys.modules[__name__])
    outcomes: list[Outcome] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=s.FOLDER or None, prefix="torture-") as folder:
        shop = Workshop(Path(folder), s.RECORDS, s.IMAGE_SIZE_PX, s.EPOCHS, tuple(s.SPECIES))
        for name in s.ONLY or PARTS:
            for outcome in _rows_of(name, s, shop):
                print(table([outcome]), flush=True)
                outcomes.append(outcome)
    print(f"\n{table(outcomes)}\n")
    num_failed = sum(bool(outcome.failures) for outcome in outcomes)
    print(f"rows: {len(outcomes)}\nfailed: {num_failed}")
    print(f"minutes: {(time.monotonic() - begun) / 60:.1f}")
    return int(num_failed > 0)


def _rows_of(name: str, s: Settings, shop: Workshop) -> Rows:
    """Yield the rows of a part; where the part itself breaks, that is a row too."""
    try:
        yield from PARTS[name](s, shop)
    except (Exception, SystemExit) as error:  # the other parts must still be done
        traceback.print_exc()
        yield Outcome(name, "the part itself", failures=[f"{type(error).__name__}: {error}"])


def _each(s: Settings, known: tuple[str, ...], torture: Callable[[str], Outcome]) -> Rows:
    """Torture the programs of a part that are wanted."""
    wanted = [name for name in known if not s.PROGRAMS or name.split()[0] in s.PROGRAMS]
    return map(torture, wanted)


def _fuzzed(part: str, s: Settings, shop: Workshop) -> Rows:
    """Read files that are mutated, in processes of their own."""
    for what, fuzzer in FUZZERS[part].items():
        num_files, place = getattr(s, f"NUM_{part.upper()}"), shop.scratch(part)
        fuzzer = f"tests.torture.{fuzzer}"
        yield fuzz_apart(Outcome(part, what), fuzzer, place, num_files, s.SEED)


FUZZERS = {
    "images": {"mutated images": "images:image_fuzzer"},
    "csv": {"mutated annotations": "annotations:csv_fuzzer"},
    "checkpoints": {"damaged checkpoints": "checkpoints:damaged_fuzzer"},
    "crafted": {"crafted checkpoints": "checkpoints:crafted_fuzzer"},
    "pickles": {"hostile pickles": "pickles:pickle_fuzzer"},
    "bundles": {"strangers' bundles": "bundles:bundle_fuzzer"},
    "packs": {"damaged packs": "packs:damaged_fuzzer", "sealed packs": "packs:sealed_fuzzer"},
    "settings": {"mutated presets": "tables:preset_fuzzer"},
    "splits": {"mutated splits": "tables:split_fuzzer"},
}
PARTS = {
    **{part: partial(_fuzzed, part) for part in FUZZERS},
    "requests": lambda s, shop: [torture_page(shop, s.NUM_REQUESTS, s.SEED)],
    "kills": lambda s, shop: _each(
        s, programs.KILLED, lambda name: programs.torture_kills(shop, name, s.NUM_KILLS, s.SEED)
    ),
    "disk": lambda s, shop: _each(s, programs.FILLED, partial(programs.torture_disk, shop)),
    "two_processes": lambda s, shop: _each(
        s, programs.RIVALS, partial(programs.torture_two_processes, shop)
    ),
    "resume": lambda s, shop: _each(
        s, programs.STOPPED, lambda name: programs.torture_resume(shop, name, s.NUM_STOPS, s.SEED)
    ),
    "soak": lambda s, shop: torture_soak(shop, s.SOAK_SECONDS),
    "server": lambda s, shop: torture_load(shop, s.SERVER_SECONDS),
}


if __name__ == "__main__":
    run_script(main)
