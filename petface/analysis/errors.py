"""Where an evaluation's test split is wrong: the surest mistakes and what the networks look at,
accuracy by kind of animal, and whether answers lean on how photos are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from petface import files
from petface.data.catalog import Catalog, listed_files
from petface.data.loading import OK, FileImages, even_slices, read_ahead
from petface.errors import UserError
from petface.evaluation.details import HEADS, Evaluation, class_numbers
from petface.inference.gradcam import finest_useful_layer, gradcams, overlay
from petface.metrics import accuracy_interval, gain_interval
from petface.models.network import Network
from petface.progress import progress
from petface.taxonomy import UNKNOWN

PICTURE_PX: Final = 128
_FONT_PX, _TEXT_PX = 11, 512


def asked_places(evaluation: Evaluation, head: str) -> np.ndarray:
    """Return the rows of the test split that a head answered and whose label is known: (M,) int64.

    For attributes these are rows whose species was predicted right; others were not asked.
    """
    rows = evaluation.rows
    return np.flatnonzero((rows["split"] == "test") & rows[f"{head}_correct"].notna())


def true_column(head: str) -> str:
    """Return the column of an evaluation that holds a head's true labels."""
    return "species" if head == "species" else f"{head}_true"


# ---- Mistakes ----


def worst_mistakes(evaluation: Evaluation) -> pd.DataFrame:
    """Return every wrong answer of the test split by row of the evaluation: head by head, the most
    confident first, equally confident ones in the order of the evaluation.

    `true_probability` is exp(-nll), NaN where the network has no class of that name; `rank` is the
    place of the truth among the answers, 1 = first.
    """
    found = []
    for head in HEADS:
        own = evaluation.rows.iloc[asked_places(evaluation, head)]
        own = own[own[f"{head}_correct"] == 0]
        own = own.sort_values(f"{head}_prob", ascending=False, kind="stable")
        details = evaluation.details[head][own.index.to_numpy()]
        more = {
            "head": head,
            "true": own[true_column(head)].astype(str),
            "predicted": own[f"{head}_pred"].astype(str),
            "probability": own[f"{head}_prob"].astype(np.float64),
            "true_probability": np.exp(-details["nll"].astype(np.float64)),
            "rank": details["rank"].astype(np.int64),
        }
        found.append(own[["species", "record"]].astype(str).assign(**more))
    every = pd.concat(found)
    every.insert(0, "image", evaluation.image_names(every.index.to_numpy()))
    return every


def write_mistakes(path: Path, mistakes: pd.DataFrame, num_kept: int = 20) -> dict[str, Any]:
    """Write all `worst_mistakes` as a CSV; return the worst per head, for JSON."""
    every = mistakes.round(6).astype(object)
    every = every.where(every.notna(), None)
    files.write_csv(path, every.columns.tolist(), every.itertuples(index=False))
    heads = every.groupby("head", sort=False)
    return {str(head): own.head(num_kept).to_dict("records") for head, own in heads}


class Work(NamedTuple):
    """The M test photos of an evaluation, by their places in the catalog of their files."""

    catalog: Catalog
    answers: pd.DataFrame  # (M,) rows of the evaluation
    sample: np.ndarray  # (S,) places of those that stand for the whole test split
    mistakes: pd.DataFrame  # the worst of each head, by place

    def labels(self, column: str, places: np.ndarray) -> list[str]:
        """Return the texts of some photos in a column of the evaluation; "" where unknown."""
        return self.answers[column].iloc[places].astype(str).tolist()


def choose_photos(
    evaluation: Evaluation, root: str, mistakes: pd.DataFrame, num_sampled: int, num_mistakes: int
) -> Work:
    """Choose the photos to look at, and list the files of the test split below `root`.

    The sample is `num_sampled` rows of the test split at equal distances, 0 = all, so that species
    keep their shares; of each head `num_mistakes` of its `worst_mistakes`.
    """
    test = np.flatnonzero(evaluation.rows["split"] == "test")
    if not len(test):
        raise UserError(f"{evaluation.folder} has no photo in the test split")
    num = min(num_sampled or len(test), len(test))
    worst = mistakes.groupby("head", sort=False).head(num_mistakes)
    return Work(
        listed_files(root, evaluation.image_names(test)),
        evaluation.rows.iloc[test],
        np.arange(num) * len(test) // num,
        worst.set_index(np.searchsorted(test, worst.index)),
    )


def explain(
    work: Work, network: Network, head: str, number: int, names: Sequence[str], species: str | None
) -> dict[int, list[np.ndarray]]:
    """Draw the mistakes of head `number`: by place the photo, its maps for answer and truth.

    `species` of a specialist, None for stage 1. Photos that cannot be read are left out; a truth
    that is no class has no map. Pictures are (S, S, 3) uint8.
    """
    source, found = FileImages(work.catalog, network.preprocessing), {}
    layer, _ = finest_useful_layer(network)
    own = work.mistakes[work.mistakes["head"] == head]
    own = own[(own["species"] == species) | (species is None)]
    answered = list(own[["predicted", "true"]].itertuples(name=None))
    for place, *answers in progress(answered, desc=f"Grad-CAM, {head}", leave=False):
        classes = class_numbers(answers, names)
        classes = classes[classes >= 0]
        pixels = source.read(np.array([place])).arrays[0]
        if len(pixels):
            twice = pixels.expand(len(classes), -1, -1, -1)
            maps, photo = gradcams(network, twice, number, classes, layer), pixels[0].numpy()
            found[place] = [photo, *(overlay(photo, cam) for cam in maps)]
    return found


def draw_mistakes(
    path: Path, mistakes: pd.DataFrame, pictures: Mapping[int, Sequence[np.ndarray]]
) -> None:
    """Draw into a PNG a row per photo of `explain`: the photo, its maps, and what was answered."""
    shown = [place for place in mistakes.index if place in pictures]
    if not shown:
        return
    sheet = Image.new("RGB", (3 * PICTURE_PX + _TEXT_PX, len(shown) * PICTURE_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for number, place in enumerate(shown):
        own, top = mistakes.loc[place], number * PICTURE_PX
        chance = own["true_probability"]
        for column, picture in enumerate(pictures[place]):
            small = Image.fromarray(picture).resize((PICTURE_PX, PICTURE_PX))
            sheet.paste(small, (column * PICTURE_PX, top))
        lines = [
            f"{own['predicted']} {own['probability'] * 100:.0f} %",
            f"truth: {own['true']}" + ("" if np.isnan(chance) else f" {chance * 100:.0f} %"),
            own["image"],
        ]
        text = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
        draw.text((3 * PICTURE_PX + 8, top + 8), "\n".join(text), "black", font)
    with files.atomic_write(path) as handle:
        sheet.save(handle, format="PNG", optimize=True)


# ---- Slices ----


def bin_figures(
    correct: np.ndarray, records: np.ndarray, cut: pd.Categorical
) -> list[dict[str, Any]]:
    """Return each bin that holds a photo; `stands_out` where its interval leaves out the accuracy
    of all M photos.

    correct (M,) of 1 and 0, records (M,) numbers.
    """
    table = pd.DataFrame({"correct": correct, "record": records, "bin": cut})
    overall, found = float(table["correct"].mean()), []
    for name, own in table.groupby("bin", observed=True):
        interval = accuracy_interval(own["correct"].to_numpy(), own["record"].to_numpy())
        found.append(
            {
                "bin": str(name),
                "num": len(own),
                "num_records": own["record"].nunique(),
                "accuracy": float(own["correct"].mean()),
                "interval_95": interval,
                "stands_out": interval is not None and not interval[0] <= overall <= interval[1],
            }
        )
    return found


def make_slices(evaluation: Evaluation) -> dict[str, Any]:
    """Cut every head's test answers by how often their label was trained on, in thirds of classes.

    {head: {slice: {"bins"}}}; a bin holds its upper end.
    """
    rows, records = evaluation.rows, evaluation.records
    result: dict[str, Any] = {}
    for head in HEADS:
        if not len(asked := asked_places(evaluation, head)):
            continue
        # classes of an attribute are (species, label); those that were asked for are cut
        label = rows.groupby(["species", true_column(head)], observed=True).ngroup().to_numpy()
        trained = np.bincount(label[rows["split"] == "train"], minlength=int(label.max()) + 1)
        classes = trained[np.unique(label[asked])]
        ends = np.unique(np.quantile(classes, (1 / 3, 2 / 3), method="inverted_cdf")).tolist()
        names = [*(f"up to {end:,}" for end in ends), f"above {ends[-1]:,}"]
        cut = pd.cut(trained[label[asked]], [-np.inf, *ends, np.inf], labels=names)
        right = rows[f"{head}_correct"].to_numpy()[asked]
        bins = bin_figures(right, records[asked], cut)
        result[head] = {"training_photos_of_label": {"bins": bins}}
    return result


# ---- Probes: small changes to photos that leave the animal what it is ----
#
# Every change takes and returns (B, 3, S, S) uint8 of any device, and is deterministic. Lengths are
# shares of the side S, rounded to whole pixels.


def shift(photos: Tensor, *, down_frac: float = 0.0, right_frac: float = 0.0) -> Tensor:
    """Move the content; what moves in is the photo mirrored at its edge."""
    for axis, frac in ((2, down_frac), (3, right_frac)):
        side = photos.shape[axis]
        source = (torch.arange(side, device=photos.device) - round(frac * side)) % (2 * side)
        photos = photos.index_select(axis, torch.minimum(source, 2 * side - 1 - source))
    return photos


def mask_border(photos: Tensor, *, frac: float, mean_colour: bool = False) -> Tensor:
    """Paint a frame of this width black, or in the mean colour of what it leaves of each photo."""
    side = photos.shape[-1]
    inside = slice(round(frac * side), side - round(frac * side))
    inner = photos[:, :, inside, inside]
    masked = torch.zeros_like(photos)
    if mean_colour:
        masked += inner.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    masked[:, :, inside, inside] = inner
    return masked


# (group, name): those of a group ask the same question, of a poorer alignment or another border
PROBES: Final[Mapping[tuple[str, str], Callable[[Tensor], Tensor]]] = {
    ("shift", f"{name} {share} %"): partial(
        shift, down_frac=down * share / 100, right_frac=right * share / 100
    )
    for share in (5, 10, 20)
    for name, down, right in (("left", 0, -1), ("right", 0, 1), ("up", -1, 0), ("down", 1, 0))
} | {
    ("border", f"outer {share} % {name}"): partial(
        mask_border, frac=share / 100, mean_colour=name != "black"
    )
    for name in ("black", "mean colour")
    for share in (5, 10, 15)
}


def predict_under_probes(
    network: Network, catalog: Catalog, places: np.ndarray, num_heads: int, *, batch_size: int,
    num_workers: int, description: str = "probes",
) -> np.ndarray:  # fmt: skip
    """Predict the photos at `places` (M,) of a catalog as they are, then under P `PROBES`.

    Returns class numbers (1 + P, M, heads) int16, -1 where a photo cannot be read or an answer is
    not finite. A probe changes the resized pixels on the device. A bar shows predictions per
    second.
    """
    predicted = np.full((1 + len(PROBES), len(places), num_heads), UNKNOWN, np.int16)
    slices = even_slices(np.arange(len(places)), batch_size)
    source = FileImages(catalog, network.preprocessing)
    decoded = read_ahead(source, [places[part] for part in slices], num_workers)
    with progress(total=len(predicted) * len(places), desc=description) as bar:
        for part, item in zip(slices, decoded, strict=True):
            rows = part[item.status == OK]
            photos = item.arrays[0].permute(0, 3, 1, 2).to(network.device)
            for k, change in enumerate([Tensor.clone, *PROBES.values()]):
                bar.update(len(part))
                for head, logits in enumerate(network.logits(change(photos)) if len(rows) else ()):
                    is_finite = logits.isfinite().all(dim=1)
                    best = torch.where(is_finite, logits.argmax(dim=1), UNKNOWN)
                    predicted[k, rows, head] = best.cpu().numpy()
    return predicted


def probe_figures(predicted: np.ndarray, true: np.ndarray, records: np.ndarray) -> dict[str, Any]:
    """Describe the answers of one head to M photos: as they are, and under P probes.

    predicted (1 + P, M), the first row without a change; true (M,) in numbers that compare with
    predicted, records (M,) numbers. Change is in accuracy, with a 95 % interval of the paired
    difference. Agreement is the share of unchanged answers.
    """
    right = predicted == true
    accuracy = right.mean(axis=1).tolist()
    found = [
        {
            "name": name,
            "group": group,
            "accuracy": accuracy[k],
            "change": accuracy[k] - accuracy[0],
            "interval_95": gain_interval(right[k].astype(np.int64) - right[0], records),
            "agreement": float((predicted[k] == predicted[0]).mean()),
        }
        for k, (group, name) in enumerate(PROBES, start=1)
    ]
    return {"baseline": {"num": len(true), "accuracy": accuracy[0]}, "probes": found}
