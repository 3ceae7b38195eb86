"""Write the two-stage system, an identity network or both into one folder, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from petface import files
from petface.data.dataset import Dataset
from petface.errors import UserError
from petface.export.model import ExportOptions, export_model
from petface.inference import onnx_models
from petface.inference.onnx_models import IDENTITY


def write_bundle(
    out: str | Path,
    stage1: str | Path,
    specialists: Mapping[str, str | Path],
    dataset: Dataset,
    options: ExportOptions,
    *,
    identity: str | Path = "",
    force: bool = False,
) -> dict[str, dict[str, Any]]:
    """Export stage 1, the specialists, {species: checkpoint}, and an identity network.

    Return the card of each; "" in place of a path = none. The folder has its name only when it is
    whole. `UserError` where there is one already, unless `force`, and where a model differs too
    much from its checkpoint.
    """
    out = Path(out)
    if out.exists() and not (force and onnx_models.is_bundle(out)):
        is_bundle = onnx_models.is_bundle(out)
        what = "a finished bundle; --force replaces it" if is_bundle else "no bundle"
        raise UserError(f"{out} exists already and is {what}")
    cards: dict[str, dict[str, Any]] = {}
    with _partial(out) as folder:
        models: list[tuple[str, str | None, str | Path]] = [("stage1", None, stage1)]
        models += [(f"stage2/{name}", name, path) for name, path in specialists.items()]
        models += [(IDENTITY, None, identity)]
        for place, species, path in models:
            if not path:
                continue
            content, card = export_model(path, species, dataset, options, place == IDENTITY)
            with files.atomic_write(folder / f"{place}.onnx") as handle:
                handle.write(content)
            files.write_json(folder / f"{place}.json", card)
            cards[species or place] = card
            print(describe(species or place, card), flush=True)
        listed = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {p.relative_to(folder).as_posix(): files.sha256_of_file(p) for p in listed}
        about = {"format": onnx_models.FORMAT, "specialists": sorted(specialists), "files": sums}
        files.write_json(folder / onnx_models.BUNDLE, about)
    return cards


def describe(name: str, card: Mapping[str, Any]) -> str:
    """Describe what a model became and how equal it is to its checkpoint, on a line or two."""
    parity, int8 = card["measured"]["parity"], card["measured"].get("int8")
    largest = max(figures["max_logit_difference"] for figures in parity["heads"].values())
    answer = "embeddings (which stay in fp32)" if card["kind"] == IDENTITY else "fp32 logits"
    line = (
        f"{name}: {card['precision']}, {card['bytes'] / 1e6:.1f} MB, {answer} within "
        f"{largest:.2g} of torch's on {parity['num_photos']} photos"
    )
    if why := card["measured"].get("contaminated"):
        line += f"\n  contaminated: {why}; what is measured on them is not on unseen animals"
    if int8 is None:
        return line
    verdict = "kept" if int8["kept"] else "not kept, fp32 stays"
    if int8["forced"]:
        verdict = f"kept by --force-int8, below {int8['wanted_agreement']:.2%}"
    shares = ", ".join(f"{head} {share:.4f}" for head, share in int8["agreement"].items())
    return f"{line}\n  int8 {verdict}: equal predictions {shares}"


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `out`, and the place of what is there, at the end.

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
