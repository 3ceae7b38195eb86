"""Measure an identity network on animals it has not learnt, beside baselines; write what was found.

`identity_summary.json`, `identity_pairs.csv` and `identity_queries.csv` in one folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from petface import files, metrics
from petface.data.catalog import Catalog
from petface.data.dataset import Dataset
from petface.data.loading import ImageReader
from petface.identity import figures, protocols, quality
from petface.identity.embed import Embedder
from petface.identity.figures import Figures
from petface.identity.protocols import Pairs, Search

SUMMARY: Final = "identity_summary.json"
PAIRS: Final = "identity_pairs.csv"
QUERIES: Final = "identity_queries.csv"
HASH: Final = "hash of the photo"


@dataclass(frozen=True, eq=False)
class Task:
    """What is measured: pairs and a search over `photos` (n,), by their place in it."""

    catalog: Catalog
    photos: np.ndarray  # (n,) int64 into the catalog
    pairs: Pairs
    search: Search
    left_out: Mapping[str, int]  # why -> how many pairs or queries

    @property
    def animal(self) -> np.ndarray:
        """Return the animal of each photo (n,)."""
        return self.catalog.record_index[self.photos]

    @property
    def species(self) -> np.ndarray:
        """Return the species of each photo (n,)."""
        return self.catalog.class_index[self.photos]


def make_task(catalog: Catalog, pairs: Pairs, search: Search, looks: np.ndarray) -> Task:
    """Leave out what cannot be read, and what two copies of one photo would answer.

    `looks` (n, 1025) are of the photos that `photos_of` lists.
    """
    photos = photos_of(pairs, search)
    left, right, gallery, queries = (
        np.searchsorted(photos, places)
        for places in (pairs.left, pairs.right, search.gallery, search.queries)
    )
    is_bad, animal = np.isnan(looks[:, 0]), catalog.record_index[photos]
    broken = is_bad[left] | is_bad[right]
    copied = quality.are_copies(looks, left, right) & ~broken
    kept = Pairs(left, right, pairs.is_same, pairs.is_official).only(~broken & ~copied)
    gallery = gallery[~is_bad[gallery]]
    order = gallery[np.argsort(animal[gallery], kind="stable")]
    begin, end = (
        np.searchsorted(animal[order], animal[queries], side=s) for s in ("left", "right")
    )
    of_query = np.repeat(np.arange(len(queries)), end - begin)
    beside = np.concatenate([order[:0], *(order[b:e] for b, e in zip(begin, end, strict=True))])
    has_copy = np.zeros(len(queries), bool)
    has_copy[of_query[quality.are_copies(looks, queries[of_query], beside)]] = True
    lost = is_bad[queries]
    left_out = {
        "pairs_unreadable": int(broken.sum()),
        "pairs_of_copies": int(copied.sum()),
        "queries_unreadable": int(lost.sum()),
        "queries_with_a_copy_in_the_gallery": int((has_copy & ~lost).sum()),
    }
    asked = Search(gallery, queries[~lost & ~has_copy], search.is_official)
    return Task(catalog, photos, kept, asked, left_out)


def photos_of(pairs: Pairs, search: Search) -> np.ndarray:
    """List the photos that have to be embedded, each once, as places in the catalog."""
    every = pairs.left, pairs.right, search.gallery, search.queries
    return np.unique(np.concatenate(every))


def measure(task: Task, table: np.ndarray, looks: np.ndarray, threshold: float | None) -> Figures:
    """Measure unit embeddings (n, D) of the task's photos; `columns` hold what each row gave."""
    left, right, is_same = task.pairs.left, task.pairs.right, task.pairs.is_same
    similarity = figures.similarities(table, left, right)
    rank, precision, best, nearest = _look_up(task, table, task.search.gallery)
    rank_in_half, _, _, nearest_in_half = _look_up(task, table, _half_of(task))
    queries, sharp = task.search.queries, quality.sharpness_of(looks)
    third = np.searchsorted(np.nanquantile(sharp, [1 / 3, 2 / 3]), sharp)
    groups = {
        "per_species": [(name, task.species == k) for k, name in enumerate(task.catalog.classes)],
        "per_sharpness": [(n, third == k) for k, n in enumerate(("blurred", "medium", "sharp"))],
    }

    def of(photos: np.ndarray) -> Figures:
        both = photos[left] & photos[right]
        animals = task.animal[left[both]], task.animal[right[both]]
        asked = photos[queries] & (rank > 0)
        found: Figures = {
            "verification": figures.verification(similarity[both], is_same[both], *animals),
            "reidentification": figures.identification(
                rank[asked], precision[asked], task.animal[queries[asked]]
            ),
        }
        if threshold is not None:
            ranks, values = rank_in_half[photos[queries]], nearest_in_half[photos[queries]]
            found["open_set"] = figures.open_set(values, ranks == 1, ranks > 0, threshold)
        return found

    found: Figures = of(np.ones(len(table), bool))
    for group, parts in groups.items():
        found[group] = {name: of(photos) for name, photos in parts if photos[queries].any()}
    if threshold is not None:
        found["false_match_rate"] = float((similarity[~is_same] >= threshold).mean())
    found["columns"] = {"similarity": similarity, "rank": rank, "best": best, "nearest": nearest}
    return found


def _look_up(task: Task, table: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, ...]:
    """Call `figures.ranks` for each species; the place is that in the task's photos."""
    queries, num = task.search.queries, len(task.search.queries)
    rank, precision = np.zeros(num, np.int64), np.full(num, np.nan)
    best, similarity = np.zeros(num, np.int64), np.full(num, -1, np.float32)
    for species in np.unique(task.species[queries]):
        rows, own = task.species[queries] == species, gallery[task.species[gallery] == species]
        if len(own):
            asked = queries[rows], task.animal[queries[rows]]
            found = figures.ranks(table[asked[0]], table[own], asked[1], task.animal[own])
            rank[rows], precision[rows], place, similarity[rows] = found
            best[rows] = own[place]
    return rank, precision, best, similarity


def _half_of(task: Task) -> np.ndarray:
    """Take every second animal out of the gallery: the others are strangers."""
    animal = task.animal[task.search.gallery]
    return task.search.gallery[np.isin(animal, np.unique(animal)[::2])]


def write_evaluation(
    out: Path, task: Task, ours: Figures, baselines: Mapping[str, Figures], facts: Figures
) -> Figures:
    """Write the summary and both tables; each baseline also says what is gained over it."""
    columns, animal = ours.pop("columns"), task.animal
    queries = task.search.queries
    summary = {**facts, "left_out": dict(task.left_out), "official_lists": task.pairs.is_official}
    summary |= {**ours, "baselines": {}}
    asked = columns["rank"] > 0
    for name, found in baselines.items():
        other = found.pop("columns")
        gain = ((columns["rank"] == 1) - 1.0 * (other["rank"] == 1))[asked]
        found["top1_gain"] = float(gain.mean()) if len(gain) else None
        found["top1_gain_interval_95"] = metrics.gain_interval(gain, animal[queries[asked]])
        summary["baselines"][name] = found
    names = [files.readable_name(task.catalog.relative_path(k)) for k in task.photos.tolist()]
    rows = zip(
        *(task.pairs.left, task.pairs.right, task.pairs.is_same, columns["similarity"]), strict=True
    )
    files.write_csv(
        out / PAIRS,
        ["image", "other_image", "is_same", "similarity"],
        ([names[a], names[b], int(same), f"{value:.6f}"] for a, b, same, value in rows),
    )
    answers = zip(queries, columns["best"], columns["nearest"], columns["rank"], strict=True)
    files.write_csv(
        out / QUERIES,
        ["image", "best_match", "similarity", "rank_of_its_animal"],
        ([names[a], names[b], f"{value:.6f}", int(r) or ""] for a, b, value, r in answers),
    )
    files.write_json(out / SUMMARY, summary)
    return summary


def headline(figures_of: Mapping[str, Any]) -> str:
    """Format the figures of one network on a line."""
    pairs, search = figures_of["verification"], figures_of["reidentification"]
    told = {
        "AUC": pairs.get("auc"),
        "TPR at FPR 0.01": pairs.get("tpr_at_fpr_0.01"),
        "top-1": search.get("top1"),
        "top-5": search.get("top5"),
        "mAP": search.get("mean_average_precision"),
    }
    return "  ".join(f"{name} {value:.1%}" for name, value in told.items() if value is not None)


def choose_lists(
    dataset: Dataset, splits_file: str, split: str, seed: int
) -> tuple[tuple[Pairs, Search], list[str]]:
    """Take PetFace's own lists where `splits_file` is their folder, else make both of a split."""
    catalog, notes = dataset.catalog, list[str]()
    pairs, search = None, None
    if splits_file and Path(splits_file).is_dir():
        pairs, notes = protocols.official_pairs(Path(splits_file), catalog)
        search, more = protocols.official_search(Path(splits_file), catalog)
        notes += more
    photos = protocols.photos_of_split(dataset, split)
    pairs = pairs or protocols.made_pairs(catalog, photos, seed)
    return (pairs, search or protocols.made_search(catalog, photos, seed)), notes


def run(
    dataset: Dataset,
    pairs: Pairs,
    search: Search,
    embedder: Embedder,
    source: ImageReader,
    baselines: Mapping[str, tuple[Embedder, ImageReader]],
    **how: Any,
) -> tuple[Task, Figures, dict[str, Figures]]:
    """Embed what the lists name, and measure it; so with each baseline and the photos' hashes."""
    photos, looks = photos_of(pairs, search), list[np.ndarray]()
    table = embedder.embed(source, photos, looks=looks, **how)
    task = make_task(dataset.catalog, pairs, search, looks[0])
    found = {HASH: measure(task, quality.hash_embeddings(looks[0]), looks[0], None)}
    for name, (other, images) in baselines.items():
        found[name] = measure(task, other.embed(images, photos, title=name, **how), looks[0], None)
    return task, measure(task, table, looks[0], embedder.threshold), found


def describe(summary: Mapping[str, Any]) -> str:
    """Format a summary for the terminal: a line for each network, what was left out, and why."""
    of, asked = summary["verification"], summary["reidentification"]
    lines = [
        f"{of['num_pairs']:,} pairs of {of['num_animals']:,} animals; {asked['num_queries']:,} "
        f"photos looked up, {asked['num_animals']:,} animals",
        f"{'this network':40s} {headline(summary)}",
    ]
    for name, found in summary["baselines"].items():
        low, high = found["top1_gain_interval_95"] or (None, None)
        bounds = "" if low is None else f" ({low:+.1%} to {high:+.1%})"
        gain = f"  top-1 gained over it {found['top1_gain']:+.1%}{bounds}"
        lines.append(f"{name[-40:]:40s} {headline(found)}{gain}")
    lines += [f"  {name:38s} {headline(found)}" for name, found in summary["per_species"].items()]
    if "open_set" in summary:
        rates = summary["open_set"]
        told = {key.replace("_", " "): rates[key] for key in list(rates)[3:]}
        lines.append(
            "open set, " + ", ".join(f"{k} {v:.1%}" for k, v in told.items() if v is not None)
        )
    lines += [f"left out, {k.replace('_', ' ')}: {n}" for k, n in summary["left_out"].items() if n]
    return "\n".join(lines)
