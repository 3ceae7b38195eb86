"""Write the two-stage system into one folder, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from petface import files
from petface.data.dataset import Dataset
from petface.errors import UserError
from petface.export.model import Wishes, Written, export_model
from petface.export.sources import read_source
from petface.inference import onnx_models as exported


def write_bundle(
    out: str | Path,
    stage1: str | Path,
    specialists: Mapping[str, str | Path],
    dataset: Dataset,
    wishes: Wishes,
    *,
    force: bool = False,
) -> dict[str, dict[str, Any]]:
    """Export stage 1 and the specialists, {species: checkpoint}, and give the card of each.

    The folder has its name only when it is whole. `UserError` where there is one already, unless
    `force`, and where a model differs too much from its checkpoint.
    """
    out = Path(out)
    if out.exists() and not (force and exported.is_bundle(out)):
        what = "a finished bundle; --force replaces it" if exported.is_bundle(out) else "no bundle"
        raise UserError(f"{out} exists already and is {what}")
    cards: dict[str, dict[str, Any]] = {}
    with _partial(out) as folder:
        models: list[tuple[str | None, str | Path]] = [(None, stage1), *specialists.items()]
        for species, path in models:
            source = read_source(path, species)
            written = export_model(source, dataset, wishes)
            name = "stage1" if species is None else f"stage2/{species}"
            _write(folder / name, written)
            if written.plain is not None:
                _write(folder / "float" / name, written.plain)
            cards[str(source)] = written.card
            print(describe(str(source), written.card), flush=True)
        listed = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {p.relative_to(folder).as_posix(): files.sha256_of_file(p) for p in listed}
        files.write_json(
            folder / exported.BUNDLE,
            {
                "format": exported.FORMAT,
                "specialists": sorted(specialists),
                "precision": {name: card["precision"] for name, card in cards.items()},
                "megabytes": round(sum(path.stat().st_size for path in listed) / 1e6, 1),
                "packages": cards["stage1"]["packages"],
                "files": sums,
            },
        )
    return cards


def describe(name: str, card: Mapping[str, Any]) -> str:
    """Say in a line what a model became and how equal it is to its checkpoint."""
    measured = card["measured"]["parity"]
    largest = max(figures["max_logit_difference"] for figures in measured["heads"].values())
    line = (
        f"{name}: {card['precision']}, {card['bytes'] / 1e6:.1f} MB, fp32 logits within "
        f"{largest:.2g} of torch's on {measured['num_photos']} photos"
    )
    int8 = card["measured"].get("int8")
    if int8 is None:
        return line
    shares = ", ".join(f"{head} {share:.4f}" for head, share in int8["agreement"].items())
    ratio = int8["img_per_s"]["int8"] / int8["img_per_s"]["fp32"]
    verdict = "kept" if int8["kept"] else "not kept, fp32 stays"
    if int8["forced"]:
        verdict = f"kept by --force-int8, below {int8['wanted_agreement']:.2%}"
    return f"{line}\n  int8 {verdict}: equal answers {shares}; {ratio:.2f} times as fast"


def _write(stem: Path, written: Written) -> None:
    with files.atomic_write(stem.with_name(stem.name + ".onnx")) as handle:
        handle.write(written.content)
    files.write_json(stem.with_name(stem.name + ".json"), written.card)


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Give an empty folder that takes the name `out`, and the place of what is there, at the end.

    Where it comes to no end, the folder beside `out` is no bundle; the next start empties it.
    `UserError` where another process is writing it.
    """
    folder, old = (out.with_name(f"{out.name}.{what}") for what in ("unfinished", "replaced"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(out, error) from error
    with files.turn_in(folder, wait=False):
        try:
            for left in (*folder.iterdir(), old):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            yield folder
            if out.exists():
                out.rename(old)
            folder.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise files.write_error(out, error) from error
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
