"""The fingerprint of the data that a network was trained on, which its checkpoints carry.

Records are 8-byte hashes of species and name, which compare without the names: 2 MB for PetFace.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from petface.data.catalog import Catalog
from petface.data.dataset import Dataset, species_of_records
from petface.data.splits import SPLITS

Data = dict[str, Any]  # as stored in a checkpoint: tensors, text, plain tables
PACKAGES: Final = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn")
_TABLES = ("classes", "labels", "not_learnt", "photos", "versions")
_SEEN = ("train", "val", "inherited")  # the sets that an export keeps


def record_hashes(species: Sequence[str], records: Sequence[str]) -> np.ndarray:
    """Hash records without a salt: (R,) int64, the first 8 bytes of SHA-256 each."""
    texts = (f"{name}\n{record}" for name, record in zip(species, records, strict=True))
    digests = (hashlib.sha256(text.encode("utf-8", "backslashreplace")) for text in texts)
    return np.frombuffer(b"".join(digest.digest()[:8] for digest in digests), "<i8")


def hashes_of(dataset: Dataset) -> np.ndarray:
    """Hash the records of a dataset, in the order of its catalog: (R,) int64."""
    catalog = dataset.catalog
    return record_hashes(species_of_records(catalog).tolist(), catalog.record_names.tolist())


def describe_data(
    dataset: Dataset,
    species: str | None = None,
    vocabularies: Mapping[str, Sequence[str]] | None = None,
) -> Data:
    """Describe the training data of stage 1 (`species` None) or a specialist (`vocabularies`)."""
    catalog, split = dataset.catalog, dataset.record_split
    hashes, species_of = hashes_of(dataset), species_of_records(catalog)
    names = list(catalog.classes) if species is None else [species]
    own = np.isin(species_of, names)
    records = [np.sort(hashes[own & (split == number)]) for number in range(len(SPLITS))]
    labels = {}
    for name in names if vocabularies is None else [species]:
        table = dataset.annotations.get(str(name))
        aligned = table.align(catalog.record_names[species_of == name]) if table else {}
        for head in aligned if vocabularies is None else vocabularies:
            told = repr((table and table.vocabularies[head], aligned[head].tolist()))
            labels[f"{name} {head}"] = _digest(told.encode("utf-8", "backslashreplace"))
    classes = {"species": names} if vocabularies is None else vocabularies
    return {
        "records": {p: torch.tensor(own) for p, own in zip(SPLITS, records, strict=True)},
        "inherited": torch.empty(0, dtype=torch.int64),  # what the initial weights were trained on
        "unknown": [],  # initial weights without a fingerprint
        "split": _digest(b"\n".join(own.tobytes() for own in records)),
        "classes": {head: list(listed) for head, listed in classes.items()},
        "labels": {} if vocabularies is None else labels,
        "not_learnt": labels if vocabularies is None else {},
        "photos": describe_photos(catalog, names),
        "made_up": (Path(os.fsdecode(catalog.root)).parent / "demo.json").is_file(),
        "versions": versions(),
    }


def describe_photos(catalog: Catalog, names: Sequence[str]) -> dict[str, str]:
    """Hash names, sizes and times of the photos of some classes; hex digest per class."""
    found = {}
    for name in names:
        places = np.flatnonzero(catalog.class_index == catalog.classes.index(name))
        begin, end = catalog.path_offsets[[places[0], places[-1] + 1]]
        paths = catalog.path_bytes[begin:end].tobytes()
        found[name] = _digest(paths + catalog.stamps(places).tobytes())
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that weights depend on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- Reading ----


def read_data(content: Mapping[str, Any]) -> Data | None:
    """Read the fingerprint in a checkpoint, or None; raise `ValueError` if it is malformed."""
    data = content.get("data")
    if data is None:
        return None
    try:
        sets = [*(data["records"][part] for part in SPLITS), data["inherited"]]
        is_plain = all(t.dtype == torch.int64 and t.dim() == 1 for t in sets)
        is_plain &= all(isinstance(name, str) for name in data["unknown"])
        is_plain &= all(isinstance(data.get(name, {}), dict) for name in _TABLES)
    except (AttributeError, KeyError, TypeError):
        is_plain = False
    if not is_plain:
        raise ValueError('"data", the fingerprint of the training data, is malformed')
    return {**{name: {} for name in _TABLES}, "split": "", "made_up": False, **data}


def to_json(data: Data | None) -> dict[str, Any]:
    """Return what a network has seen as JSON values, which `from_json` reads back."""
    if data is None:
        return {}
    sets = {**data["records"], "inherited": data["inherited"]}
    texts = {name: base64.b64encode(sets[name].numpy().tobytes()).decode() for name in _SEEN}
    return {**texts, "unknown": data["unknown"], "made_up": data["made_up"]}


def from_json(table: Mapping[str, Any]) -> Data | None:
    """Read what `to_json` wrote, or None if it is empty; raise `ValueError` if it is malformed."""
    if not table:
        return None
    sets = {
        name: torch.tensor(np.frombuffer(base64.b64decode(table.get(name, "")), np.int64))
        for name in (*_SEEN, "test")
    }
    return read_data({"data": {"unknown": [], **table, **sets, "records": sets}})


# ---- Comparing ----


def seen_by(data: Data, hashes: np.ndarray, *, chosen: bool = True) -> np.ndarray:
    """Mark the records (R,) that were trained on, inherited, or selected by (`chosen`): (R,)."""
    sets = {**data["records"], "inherited": data["inherited"]}
    names = [name for name in _SEEN if chosen or name != "val"]
    return np.isin(hashes, np.concatenate([sets[name].numpy() for name in names]))


def contaminated(num: int, total: int) -> str:
    """Format how many test records were trained on, in the wording used everywhere."""
    return f"{num} of {total} records"


def changes(before: Data, now: Data) -> list[str]:
    """List the changes in the data between two fingerprints."""
    found = []
    for head in {**before["classes"], **now["classes"]}:
        old, new = (list(data["classes"].get(head, [])) for data in (before, now))
        parts = [f"{name!r} is new" for name in new if name not in old]
        parts += [f"{name!r} is gone" for name in old if name not in new]
        if old != new:
            what = ", ".join(parts[:6]) or f"in another order ({', '.join(new[:6])})"
            found.append(f"classes of {head}, {len(old)} before and {len(new)} now: {what}")
    parts_of = [[data["records"][part].numpy() for part in SPLITS] for data in (before, now)]
    gone, new_ones = (
        len(np.setdiff1d(np.concatenate(one), np.concatenate(other)))
        for one, other in (parts_of, parts_of[::-1])
    )
    stayed = sum(len(np.intersect1d(*pair)) for pair in zip(*parts_of, strict=True))
    moved = sum(map(len, parts_of[0])) - gone - stayed
    found += [f"records: {new_ones} are new, {gone} are gone"] * bool(gone or new_ones)
    found += [f"split: {moved} records are in another split"] * bool(moved)
    if not (gone or new_ones) and (names := _unequal(before["labels"], now["labels"])):
        found.append(f"labels of {', '.join(names)}")
    both = before["photos"].keys() & now["photos"].keys()
    if names := [name for name in _unequal(before["photos"], now["photos"]) if name in both]:
        found.append(f"photos of {', '.join(names)}: their names, sizes or times")
    return found


def notes_on(before: Data, now: Data) -> list[str]:
    """List differences that do not prevent resuming: versions, and labels not used in training."""
    pairs = [
        f"{name} {before['versions'].get(name)} -> {now['versions'].get(name)}"
        for name in _unequal(before["versions"], now["versions"])
    ]
    labels = _unequal(before["not_learnt"], now["not_learnt"])
    found = [f"versions changed since the run began: {', '.join(pairs)}"] * bool(pairs)
    return found + [f"labels changed, unused in training: {', '.join(labels)}"] * bool(labels)


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
