"""Evaluate a whole dataset: each image by stage 1, and where that is right by its specialist.

The answers go slice by slice into a table and a file of details, which resume after a kill; their
metrics go into a summary. Under torchrun each process has neighbouring slices, so that the files of
all, one after the other, are those of one process alone; the first puts them together.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from petface import distributed, files
from petface.data.dataset import Dataset, load_dataset
from petface.data.fingerprint import describe_photos
from petface.data.images import Preprocessing
from petface.data.loading import Decoded, even_slices, uploaded, worker_count
from petface.data.pack import image_source
from petface.evaluation.details import (
    DETAILS,
    DETAILS_FILE,
    MODELS,
    PER_IMAGE,
    PER_IMAGE_COLUMNS,
    SUMMARY,
    read_evaluation,
)
from petface.evaluation.figures import CONFUSIONS, write_confusions
from petface.evaluation.rows import Predicted, SpeciesRows
from petface.evaluation.summary import class_differences, difference_lines, summarise
from petface.inference import onnx_models
from petface.inference.loading import (
    ComputeOptions,
    Stage,
    describe_model,
    find_model,
    find_specialist,
    load_stage,
    reading_of,
)
from petface.models.network import begin_copy
from petface.progress import progress
from petface.resumable import ResumableRecords, ResumableTable, refuse_finished, write_behind

Models = dict[str, Any]  # JSON values: the models, the data and the arithmetic of an evaluation
Rows = tuple[str, np.ndarray]  # the lines of a slice of n images, and (n,) of `DETAILS`


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated and where it goes; see `inference_engine.evaluate_full_dataset`."""

    images_root: str | Path
    annotations_root: str | Path
    stage1_checkpoint: str | Path
    stage2_folder: str | Path | None
    out_dir: str | Path
    splits_file: str = ""
    split_seed: int = 0
    batch_size: int = 64
    num_workers: int = -1
    pack: str = ""
    force: bool = False

    @property
    def specialists(self) -> str | Path | None:
        """Return where the specialists are: a bundle brings its own."""
        is_bundle = onnx_models.is_bundle(self.stage1_checkpoint)
        return self.stage1_checkpoint if is_bundle else self.stage2_folder


def evaluate_dataset(options: EvaluationOptions, how: ComputeOptions) -> dict[str, Any]:
    """Predict every image, write the files of an evaluation and return its summary.

    A stopped evaluation resumes at its last whole slice. `UserError` for a finished one unless
    `force`, and for one that was begun with other models, data or arithmetic.
    """
    gc.collect()  # folded networks are in cycles of torch.fx: those of an earlier evaluation go
    out = Path(options.out_dir)
    own_table, own_details = own_path(out / PER_IMAGE), own_path(out / DETAILS_FILE)
    if own_table.exists() and distributed.is_main():  # killed when only this was left to do
        remove_parts(own_table, own_details)
    refuse_finished(out / PER_IMAGE, options.force)
    dataset = load_dataset(
        options.images_root,
        options.annotations_root,
        splits_file=options.splits_file,
        seed=options.split_seed,
        reading_of=partial(reading_of, stage2_folder=options.specialists),
    )
    print("\n".join(dataset.notes))
    models = _describe_models(options, dataset, how)
    for line in difference_lines(models["class_differences"]):
        print(line)
    rule = Preprocessing(**models["stage1"]["preprocessing"])
    image_source(dataset.catalog, options.pack, rule)  # a pack is made by one process
    if not distributed.is_main():
        distributed.barrier()  # until the first has kept models and the table, and has not refused
    stage1 = load_stage(models["stage1"]["path"], None, how)  # before anything is replaced
    plan = own_slices(plan_slices(dataset.catalog.class_index, options.batch_size))
    records = ResumableRecords(own_details, DETAILS)
    table = ResumableTable(
        own_table,
        PER_IMAGE_COLUMNS,
        _identity(models),
        force=options.force,
        replaced=(out / SUMMARY, out / "report.html"),
    )
    with table:
        # both files are cut back to whole slices
        num_done = table.batches_kept([len(places) for places in plan], records.num_kept())
        records.write(sum(map(len, plan[:num_done])), np.empty(0, DETAILS))
        if distributed.is_main():
            files.write_json(out / MODELS, models)
            distributed.barrier()
        slices = predict_slices(dataset, models, stage1, plan[num_done:], options, how)
        _write(slices, records, table, sum(map(len, plan)))
        distributed.barrier()
        summary = _finish(out, table, records) if distributed.is_main() else {}
    return distributed.broadcast_object(summary)


def _describe_models(options: EvaluationOptions, dataset: Dataset, how: ComputeOptions) -> Models:
    """Describe all that the answers depend on, as JSON values for `MODELS`."""
    stage1, folder = find_model(options.stage1_checkpoint, None), options.specialists
    found = {name: find_specialist(name, folder) for name in dataset.catalog.classes}
    if folder is None:
        print("stage 1 alone: no STAGE2_FOLDER is given")
    elif missing := [name for name, path in found.items() if path is None]:
        print(f"no specialist in {folder} for: {', '.join(missing)}")
    models = {
        "stage1": describe_model(stage1, None),
        "specialists": {
            name: describe_model(path, name, options.annotations_root)
            for name, path in found.items()
            if path is not None
        },
        "images_root": str(options.images_root),
        "annotations_root": str(options.annotations_root),
        "splits_file": str(options.splits_file),
        "dataset": dataset.fingerprint(),
        "photos": describe_photos(dataset.catalog, dataset.catalog.classes),
        "batch_size": options.batch_size,
        **how.identity(),
    }
    for name, model in models["specialists"].items():
        named = {h: c for h, c in model["heads"].items() if model["sources"][h] != "index"}
        if nameless := sorted(model["heads"].keys() - named.keys()):
            print(f"{name}: no names for the classes of {', '.join(nameless)}: not scored")
        model["heads"] = named
    return {**models, "class_differences": class_differences(dataset, models)}


def _identity(models: Models) -> Models:
    """Pick what must be equal for an unfinished evaluation to be continued."""
    paths = ("images_root", "annotations_root", "splits_file")
    return {
        **{key: value for key, value in models.items() if key not in paths},
        "stage1": {**models["stage1"], "path": ""},  # a file that moved is the same
        "specialists": {name: {**m, "path": ""} for name, m in models["specialists"].items()},
        "details": str((DETAILS, PER_IMAGE_COLUMNS, "raw")),
    }


def _finish(out: Path, table: ResumableTable, records: ResumableRecords) -> dict[str, Any]:
    """Gather the rows of all and write what is computed from them; the table is named last.

    A table with that name is refused, so that nothing behind it would be made again.
    """
    take_in_parts(table, records)
    records.finish()
    evaluation = read_evaluation(out, table.unfinished)
    summary = summarise(evaluation)
    write_confusions(evaluation.heads, out / CONFUSIONS)
    files.write_json(out / SUMMARY, summary)
    table.finish()
    remove_parts(table.path, records.path)
    return summary


# ---- Predicting and writing ----


def plan_slices(class_index: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut the images of each class (N,), which lie together, into slices of places."""
    limits = np.flatnonzero(np.diff(class_index)) + 1
    classes = np.split(np.arange(len(class_index)), limits)
    return [places for images in classes for places in even_slices(images, batch_size)]


def predict_slices(
    dataset: Dataset,
    models: Models,
    stage1: Stage,
    plan: Sequence[np.ndarray],
    options: EvaluationOptions,
    how: ComputeOptions,
) -> Generator[Callable[[], Rows], None, None]:
    """Predict each slice of `plan`; yield what builds its rows, in order.

    A slice holds images of one species; one specialist at a time is on the device. Rows are built
    by whoever writes them, while the device works on the next slice.
    """
    catalog, specialists = dataset.catalog, models["specialists"]
    is_alone = options.stage2_folder is None and not specialists
    opened = cache(partial(image_source, catalog, options.pack, together=False))  # workers stay
    for number, group in groupby(plan, lambda places: int(catalog.class_index[places[0]])):
        species, slices = catalog.classes[number], list(group)
        specialist = None
        if model := specialists.get(species):
            specialist = load_stage(model["path"], species, how, options.annotations_root)
        rules = [stage.network.preprocessing for stage in (stage1, specialist) if stage]
        # the same pixels for both stages are made once
        by_size = {(rule.size_px, rule.resize): rule for rule in rules}
        source = opened(*by_size.values())
        rows = SpeciesRows(dataset, species, stage1, specialist, is_alone)
        workers = worker_count(options.num_workers)
        with closing(uploaded(source, slices, workers, stage1.network.device)) as items:
            for places, item in zip(slices, items, strict=True):
                predicted = predict(places, item, stage1, specialist, rows.species_number)
                yield partial(rows.build, predicted)


def predict(
    places: np.ndarray, item: Decoded, stage1: Stage, specialist: Stage | None, species_number: int
) -> Callable[[], Predicted]:
    """Predict a decoded slice by stage 1, and by the specialist where that says `species_number`.

    What is returned waits for the answers. A GPU would be waited for here to know where stage 1 is
    right: there the specialist predicts all. Where logits are not finite there is no answer.
    """
    status, failures = item.status, item.failures
    if not len(item.arrays[0]):
        nothing = np.empty((0, len(stage1.names["species"])), np.float32)
        return lambda: Predicted(places, status, nothing, np.empty(0, bool), (), failures)
    outputs = stage1.network.answer_pixels(item.arrays[0])
    is_of_all = outputs[0].device.type == "cuda"
    if specialist is not None:
        pixels = item.arrays[-1]
        if not is_of_all:
            pixels = pixels[is_answer(outputs[0], species_number)]
        if len(pixels):
            outputs += specialist.network.answer_pixels(pixels)
    arrive = begin_copy(outputs)

    def finish() -> Predicted:
        species, *heads = arrive()
        right = is_answer(species, species_number)
        found = tuple((head[right] if is_of_all else head).numpy() for head in heads)
        return Predicted(places, status, species.numpy(), right.numpy(), found, failures)

    return finish


def is_answer(logits: Tensor, number: int) -> Tensor:
    """Return where (B, K) logits are finite and the largest is that of a class: (B,) bool."""
    return (logits.argmax(dim=1) == number) & logits.isfinite().all(dim=1)


def _write(
    slices: Generator[Callable[[], Rows], None, None],
    records: ResumableRecords,
    table: ResumableTable,
    num_planned: int,
) -> None:
    """Write slices behind the rows that are there, until there are `num_planned`."""
    num_right = num_answered = 0
    num_rows = records.num_kept()
    bar = progress(shown=distributed.shows(), total=num_planned, initial=num_rows, desc="evaluate")

    def write(build: Callable[[], Rows]) -> None:
        nonlocal num_right, num_answered
        lines, details = build()
        # before the rows: those without details are cut off
        records.write(records.num_kept(), details)
        table.write_lines(lines)
        num_answered += int((details["species"]["rank"] > 0).sum())
        num_right += int((details["species"]["rank"] == 1).sum())
        bar.set_postfix_str(f"species {num_right / max(num_answered, 1):.4f}", refresh=False)
        bar.update(len(details))

    with bar, closing(slices):
        write_behind(slices, write)


# ---- Several processes ----


def own_slices(plan: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Return this process's slices of a plan, neighbours; slices are of about the same size."""
    parts = np.array_split(np.arange(len(plan)), distributed.world_size())
    return [plan[k] for k in parts[distributed.rank()]]


def own_path(path: Path, rank: int | None = None) -> Path:
    """Return the file of this process, or of another `rank`; that of the first is `path`."""
    rank = distributed.rank() if rank is None else rank
    name = f"{path.stem}_rank{rank}of{distributed.world_size()}{path.suffix}"
    return path.with_name(name) if rank else path


def take_in_parts(table: ResumableTable, records: ResumableRecords) -> None:
    """Append what the others have written to the rows of the first process."""
    for rank in range(1, distributed.world_size()):
        found = np.fromfile(f"{own_path(records.path, rank)}.unfinished", DETAILS)
        records.write(records.num_kept(), found)
        table.take_in(Path(f"{own_path(table.path, rank)}.unfinished"))


def remove_parts(*paths: Path) -> None:
    """Remove what finished files were made of here and by other processes, also earlier ones."""
    for path in paths:
        for part in [*path.parent.glob(f"{path.stem}_rank*of*"), Path(f"{path}.unfinished")]:
            part.unlink(missing_ok=True)
