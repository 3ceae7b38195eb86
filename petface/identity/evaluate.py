"""Measure an identity network on animals, beside baselines; write a summary and two tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from petface import distributed, files, metrics
from petface.analysis import duplicates
from petface.data.catalog import Catalog
from petface.data.dataset import Dataset
from petface.data.fingerprint import Data, hashes_of, seen_by
from petface.data.loading import ImageReader
from petface.evaluation.figures import interval, points
from petface.identity import figures, protocols
from petface.identity.embed import Embedder, checked
from petface.identity.figures import Figures
from petface.identity.protocols import Pairs, Search

SUMMARY: Final = "identity_summary.json"
PAIRS: Final = "identity_pairs.csv"
QUERIES: Final = "identity_queries.csv"
HASH: Final = "hash of the photo"
_SIDE = duplicates.THUMBNAIL_PX
Lists = tuple[tuple[Pairs, Search], list[str]]  # what is asked, and notes


@dataclass(frozen=True, eq=False)
class Task:
    """What is measured: pairs and a search over `photos` (n,), by their place in it."""

    catalog: Catalog
    photos: np.ndarray  # (n,) int64 into the catalog
    animal: np.ndarray  # (n,) of each photo
    species: np.ndarray  # (n,)
    pairs: Pairs
    search: Search
    left_out: Mapping[str, int]  # why -> how many pairs or queries


def make_task(
    catalog: Catalog, photos: np.ndarray, pairs: Pairs, search: Search, looks: np.ndarray
) -> Task:
    """Leave out what cannot be read, and what two copies of one photo would answer.

    `photos` (n,) are all that are named, sorted; their `looks` (n, 1025).
    """
    left, right, gallery, queries = (
        np.searchsorted(photos, places)
        for places in (pairs.left, pairs.right, search.gallery, search.queries)
    )
    is_bad, animal = np.isnan(looks[:, 0]), catalog.record_index[photos]
    broken = is_bad[left] | is_bad[right]
    gallery = gallery[~is_bad[gallery]]
    order = gallery[np.argsort(animal[gallery], kind="stable")]
    begin, end = (np.searchsorted(animal[order], animal[queries], s) for s in ("left", "right"))
    of_query = np.repeat(np.arange(len(queries)), end - begin)
    beside = np.concatenate([order[:0], *(order[b:e] for b, e in zip(begin, end, strict=True))])
    sides = np.concatenate([left, queries[of_query]]), np.concatenate([right, beside])
    copied, found = np.split(are_copies(looks, *sides), [len(left)])
    copied &= ~broken
    kept = Pairs(left, right, pairs.is_same, pairs.is_official).only(~broken & ~copied)
    has_copy = np.isin(np.arange(len(queries)), of_query[found])
    lost = is_bad[queries]
    left_out = {
        "pairs_unreadable": int(broken.sum()),
        "pairs_of_copies": int(copied.sum()),
        "queries_unreadable": int(lost.sum()),
        "queries_with_a_copy_in_the_gallery": int((has_copy & ~lost).sum()),
    }
    asked = Search(gallery, queries[~lost & ~has_copy], search.is_official)
    return Task(catalog, photos, animal, catalog.class_index[photos], kept, asked, left_out)


def measure(task: Task, table: np.ndarray, looks: np.ndarray, threshold: float | None) -> Figures:
    """Measure unit embeddings (n, D) of the task's photos; `columns` hold what each row gave."""
    left, right, is_same = task.pairs.left, task.pairs.right, task.pairs.is_same
    similarity = figures.similarities(table, left, right)
    rank, precision, best, nearest = _look_up(task, table, task.search.gallery)
    animal_of = task.animal[task.search.gallery]
    half = task.search.gallery[np.isin(animal_of, np.unique(animal_of)[::2])]
    rank_in_half, _, _, nearest_in_half = _look_up(task, table, half)
    queries, sharp = task.search.queries, looks[:, 0]
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
        matched = similarity[~is_same] >= threshold
        found["false_match_rate"] = float(matched.mean()) if len(matched) else None
    found["columns"] = {"similarity": similarity, "rank": rank, "best": best, "nearest": nearest}
    return found


def _look_up(task: Task, table: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, ...]:
    """Call `figures.ranks` for each species; places are those of the task, -1 = none."""
    queries, num = task.search.queries, len(task.search.queries)
    rank, precision = np.zeros(num, np.int64), np.full(num, np.nan)
    best, similarity = np.full(num, -1), np.full(num, -1, np.float32)
    for species in np.unique(task.species[queries]):
        rows, own = task.species[queries] == species, gallery[task.species[gallery] == species]
        if len(own):
            asked = queries[rows], task.animal[queries[rows]]
            found = figures.ranks(table[asked[0]], table[own], asked[1], task.animal[own])
            rank[rows], precision[rows], place, similarity[rows] = found
            best[rows] = own[place]
    return rank, precision, best, similarity


def write_evaluation(
    out: Path, task: Task, ours: Figures, baselines: Mapping[str, Figures], facts: Figures
) -> Figures:
    """Write the summary and both tables; each baseline also says what is gained over it."""
    columns, pairs, queries = ours.pop("columns"), task.pairs, task.search.queries
    is_official = pairs.is_official and task.search.is_official
    summary = {**facts, "left_out": dict(task.left_out), "official_lists": is_official}
    summary |= {**ours, "baselines": {}}
    asked, animal = columns["rank"] > 0, task.animal
    for name, found in baselines.items():
        other = found.pop("columns")
        gain = ((columns["rank"] == 1) - 1.0 * (other["rank"] == 1))[asked]
        found["top1_gain"] = float(gain.mean()) if len(gain) else None
        found["top1_gain_interval_95"] = metrics.gain_interval(gain, animal[queries[asked]])
        summary["baselines"][name] = found
    names = [files.readable_name(task.catalog.relative_path(k)) for k in task.photos.tolist()]
    names.append("")  # of -1
    rows = zip(pairs.left, pairs.right, pairs.is_same, columns["similarity"], strict=True)
    cells = ([names[a], names[b], int(same), f"{value:.6f}"] for a, b, same, value in rows)
    files.write_csv(out / PAIRS, ["image", "other_image", "is_same", "similarity"], cells)
    rows = zip(queries, columns["best"], columns["nearest"], columns["rank"], strict=True)
    cells = ([names[a], names[b], f"{value:.6f}", int(r) or ""] for a, b, value, r in rows)
    header = ["image", "best_match", "similarity", "rank_of_its_animal"]
    files.write_csv(out / QUERIES, header, cells)
    files.write_json(out / SUMMARY, summary)
    return summary


def choose_lists(dataset: Dataset, splits_file: str, split: str, seed: int) -> Lists:
    """Take PetFace's own lists where `splits_file` is their folder, else make both of a split."""
    catalog, folder = dataset.catalog, Path(splits_file)
    pairs, search, notes = None, None, list[str]()
    if splits_file and folder.is_dir():
        pairs, notes = protocols.official_pairs(folder, catalog)
        search, more = protocols.official_search(folder, catalog)
        for name in (protocols.VERIFICATION, protocols.REIDENTIFICATION):
            lacking = [s for s in catalog.classes if not (folder / s / name).is_file()]
            more += [f"{folder}: no {name} for {', '.join(lacking)}"] * bool(lacking)
        notes += more
    photos = protocols.photos_of_split(dataset, split)
    pairs = pairs or protocols.made_pairs(catalog, photos, seed, f"the {split} split")
    return (pairs, search or protocols.made_search(catalog, photos, seed)), notes


def run(
    dataset: Dataset,
    pairs: Pairs,
    search: Search,
    embedder: Embedder,
    source: ImageReader,
    baselines: Mapping[str, tuple[Embedder, ImageReader]],
    **how: Any,
) -> tuple[Task, Figures, dict[str, Figures]] | None:
    """Embed what the lists name, and measure it; so with each baseline and the photos' hashes.

    Several processes embed; the first alone measures, the others return None.
    """
    photos = np.unique(np.concatenate([pairs.left, pairs.right, search.gallery, search.queries]))
    table = embedder.embed(source, photos, look=look_at, **how)
    if not distributed.is_main():
        assert not baselines, "one process alone embeds them"
        return None
    looks, table = np.split(checked(table, embedder.name), [1 + _SIDE**2], axis=1)
    task = make_task(dataset.catalog, photos, pairs, search, looks)
    found = {HASH: measure(task, hash_embeddings(looks), looks, None)}
    ours = measure(task, table, looks, embedder.threshold)
    ours["learnt"] = learnt(dataset, task, embedder.data)
    for name, (other, images) in baselines.items():
        table = checked(other.embed(images, photos, title=name, **how), name)
        found[name] = measure(task, table, looks, None)
    return task, ours, found


def learnt(dataset: Dataset, task: Task, data: Data | None) -> dict[str, int] | None:
    """Count pairs and queries of animals that the network has met in training; None: not known."""
    if data is None or data["unknown"]:
        return None
    is_met = seen_by(data, hashes_of(dataset))[task.animal]
    num_pairs = int((is_met[task.pairs.left] | is_met[task.pairs.right]).sum())
    return {"pairs": num_pairs, "queries": int(is_met[task.search.queries].sum())}


def _headline(figures_of: Mapping[str, Any]) -> str:
    """Format the figures of one network on a line."""
    pairs, search = figures_of["verification"], figures_of["reidentification"]
    told = {"AUC": pairs.get("auc"), "TPR at FPR 0.01": pairs.get("tpr_at_fpr_0.01")}
    told |= {"top-1": search.get("top1"), "top-5": search.get("top5")}
    told["mAP"] = search.get("mean_average_precision")
    return "  ".join(f"{name} {value:.1%}" for name, value in told.items() if value is not None)


def describe(summary: Mapping[str, Any]) -> str:
    """Format a summary for the terminal: a line for each network, what was left out, and why."""
    of, asked = summary["verification"], summary["reidentification"]
    lines = [
        f"{of['num_pairs']:,} pairs of {of['num_animals']:,} animals; {asked['num_queries']:,} "
        f"photos looked up, {asked['num_animals']:,} animals",
        f"{'this network':40s} {_headline(summary)}",
    ]
    for name, found in summary["baselines"].items():
        bounds = interval(found["top1_gain_interval_95"], points)
        gain = f"{points(found['top1_gain'])} points" + f" ({bounds})" * bool(bounds)
        lines.append(f"{name[-40:]:40s} {_headline(found)}  top-1 gained over it {gain}")
    lines += [f"  {name:38s} {_headline(found)}" for name, found in summary["per_species"].items()]
    if "open_set" in summary:
        rates = [(key.replace("_", " "), value) for key, value in summary["open_set"].items()]
        told = [f"{key} {value:.1%}" for key, value in rates[3:] if value is not None]
        lines.append("open set, " + ", ".join(told))
    if (met := summary["learnt"]) is None:
        lines.append("its file does not say whether the network met these animals in training")
    elif any(met.values()):
        lines.append(f"NOT unseen: {met['pairs']} pairs, {met['queries']} photos of animals it met")
    lines += [f"left out, {k.replace('_', ' ')}: {n}" for k, n in summary["left_out"].items() if n]
    return "\n".join(lines)


# ---- What a photo looks like, apart from its animal: is it a copy, how sharp is it ----


def look_at(pixels: np.ndarray) -> np.ndarray:
    """Reduce (B, S, S, 3) uint8 to (B, 1 + 32 * 32): sharpness, and the grey thumbnail.

    Sharpness is the variance of the Laplacian (Pech-Pacheco et al. 2000), in grey levels squared.
    """
    grey = pixels @ duplicates.LUMA
    edges = 4 * grey[:, 1:-1, 1:-1]
    edges -= grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    small = np.stack([duplicates.thumbnail(one) for one in pixels])
    sharpness = edges.var(axis=(1, 2))[:, None]
    return np.concatenate([sharpness, small.reshape(len(small), -1)], axis=1, dtype=np.float32)


def are_copies(looks: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Check which pairs (P,) are one photo, also resized, brightened, mirrored: (P,) bool."""
    small, found = _thumbnails(looks), left == right
    hashes, mirrored = _hashes(small), small[:, :, ::-1]
    for first, own in ((small, hashes), (mirrored, _hashes(mirrored))):
        bits = own[left] ^ hashes[right]
        near = np.flatnonzero(np.bitwise_count(bits) <= duplicates.MAX_HASH_DISTANCE)
        for part in _pieces(near):
            unlike = duplicates.thumbnail_difference(first[left[part]], small[right[part]])
            found[part[unlike <= duplicates.MAX_DIFFERENCE]] = True
    return found


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    """Cut rows (n, ...) so that their thumbnails fit into memory as float32."""
    return np.array_split(rows, len(rows) // 10_000 + 1)


def _thumbnails(looks: np.ndarray) -> np.ndarray:
    parts = [np.nan_to_num(part[:, 1:]).astype(np.uint8) for part in _pieces(looks)]
    return np.concatenate(parts).reshape(-1, _SIDE, _SIDE)


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    return np.concatenate([duplicates.perceptual_hashes(part) for part in _pieces(thumbnails)])


def hash_embeddings(looks: np.ndarray) -> np.ndarray:
    """Turn perceptual hashes into unit vectors (n, 64): their product counts equal bits.

    A baseline that knows photos, not animals. NaN where there is no photo.
    """
    bits = np.unpackbits(_hashes(_thumbnails(looks))[:, None].view(np.uint8), axis=1)
    table = (bits.astype(np.float32) * 2 - 1) / 8
    table[np.isnan(looks[:, 0])] = np.nan
    return table
