"""The data card of the photos and labels that an evaluation was made on.

Its sections are those of Gebru et al. 2021, Datasheets for Datasets, arXiv 1803.09010.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from petface.analysis.audit import (
    MIN_RECORDS,
    ClassCount,
    count_classes,
    head_figures,
    photos_per_record,
)
from petface.data.dataset import Dataset
from petface.data.splits import SPLITS
from petface.report.card_facts import NOT_MEASURED, Facts
from petface.report.card_figures import count, shown
from petface.report.cards import filled_in
from petface.report.document import Block, Bullets, Document, Grid, Heading, Paragraph


def data_card(facts: Facts, classes: list[ClassCount], people: Mapping[str, str]) -> Document:
    """Build the data card; `people` holds owner, licence and contact, "" = to be filled in."""
    blocks: list[Block] = [
        Heading("Motivation"),
        Paragraph(
            "The PetFace dataset was made for recognising animal faces, of individuals and of "
            "attributes, over many species (Shinoda & Shiohara, ECCV 2024, arXiv 2407.13555). This "
            "card describes the folder that the evaluation used; whether it is PetFace, a part of "
            "it or something else laid out like it is not recorded in the files."
        ),
        *filled_in(people),
        Heading("Composition"),
        Paragraph(
            "A photo is a cropped face. A record is one animal with one photo or more; labels "
            "belong to the record. A label that is not known stays unknown and is never guessed."
        ),
        *_composition(facts, classes),
        *_quality(facts),
        Heading("Collection process"),
        Paragraph(
            "As far as the files say: " + NOT_MEASURED + ". How PetFace was collected and "
            "cropped stands in its publication."
        ),
        Heading("Preprocessing, cleaning and labelling"),
        Bullets(
            (
                "Names of records and labels are read strictly; rows that contradict each other "
                "make the label unknown, and unknown tokens (empty, unknown, NA) are no class.",
                "Photos are decoded with their rotation, made RGB and resized as the model card "
                "says; nothing is written back to the data.",
                "The split keeps all photos of an animal in one part, and is stratified by the "
                "main attribute of its species.",
            )
        ),
        Heading("Uses"),
        Bullets(
            (
                "Training and testing of species and attribute recognition, as in the model card.",
                "Research only, not commercial, under the terms of the dataset's authors.",
                "Not for learning who owns an animal or where it lives.",
            )
        ),
        Heading("Distribution"),
        Paragraph(
            "PetFace is given out by its authors on request. Neither its photos nor its labels may "
            "be passed on with a model or a report made here."
        ),
        Heading("Maintenance"),
        Paragraph(
            "The split file and the fingerprint tell when images, labels or split have changed: "
            f"{shown(facts.models.get('dataset'))}. The data themselves are kept by whoever "
            "holds them; see the owner and contact above."
        ),
    ]
    if facts.missing:
        blocks += [Heading("What could not be read", 3), Bullets(facts.missing)]
    return Document("Data card: photos and labels of the evaluation", blocks)


def class_counts(dataset: Dataset | None) -> list[ClassCount]:
    """Count the classes of a dataset, none where there is no dataset."""
    return [] if dataset is None else list(count_classes(dataset))


def _composition(facts: Facts, classes: list[ClassCount]) -> Iterator[Block]:
    dataset = facts.dataset
    if dataset is None:
        yield Paragraph(
            f"Images evaluated: {count(facts.summary.get('num_images'))}. Counts per species, "
            f"record, label and part: {NOT_MEASURED}, because the data were not read."
        )
        return
    catalog = dataset.catalog
    photos = np.bincount(catalog.class_index, minlength=len(catalog.classes)).tolist()
    records = np.bincount(catalog.record_class, minlength=len(catalog.classes)).tolist()
    cells = catalog.record_class.astype(np.int64) * len(SPLITS) + dataset.record_split
    parts = np.bincount(cells, minlength=len(catalog.classes) * len(SPLITS))
    rows: list[tuple[object, ...]] = [
        (name, records[k], photos[k], f"{photos[k] / records[k]:.2f}",
         *parts.reshape(-1, len(SPLITS))[k].tolist())
        for k, name in enumerate(catalog.classes)
    ]  # fmt: skip
    totals = parts.reshape(-1, len(SPLITS)).sum(axis=0).tolist()
    mean = f"{len(catalog) / catalog.num_records:.2f}" if catalog.num_records else ""
    rows.append(("all", catalog.num_records, len(catalog), mean, *totals))
    yield Heading("Species", 3)
    yield Paragraph("Per record: photos of one animal. Train, val and test are counted in records.")
    yield Grid(("species", "records", "photos", "per record", *SPLITS), 1, rows)
    image_parts = np.bincount(dataset.image_split, minlength=len(SPLITS)).tolist()
    listed = ", ".join(f"{part} {num:,}" for part, num in zip(SPLITS, image_parts, strict=True))
    yield Paragraph(f"Photos per part: {listed}.")
    yield Heading("Photos per record", 3)
    yield Grid(("photos", "records"), 1, list(photos_per_record(dataset).items()))
    yield Heading("Labels", 3)
    heads = head_figures(dataset, classes)
    num_records = dict(zip(catalog.classes, records, strict=True))
    coverage = [
        (
            species,
            head,
            own["classes"],
            own["records_known"],
            f"{own['records_known'] / num_records[species] * 100:.1f}",
            own["rare_classes"],
            own["untestable_classes"],
        )
        for species, per_head in heads.items()
        for head, own in per_head.items()
    ]
    yield Paragraph(
        "Known: records with that label. Rare: classes of fewer than "
        f"{MIN_RECORDS} records. Untested: classes without a test record."
    )
    header = ("species", "head", "classes", "known", "known %", "rare", "untested")
    yield Grid(header, 2, coverage)
    conflicts = {name: len(table.conflicts) for name, table in dataset.annotations.items()}
    yield Paragraph(
        f"Records whose rows contradict each other in a label: {sum(conflicts.values()):,}."
    )


def _quality(facts: Facts) -> Iterator[Block]:
    """Say what an audit found, and what the readers noted."""
    yield Heading("Errors, noise and duplicates", 3)
    audit = facts.audit
    if not audit:
        yield Paragraph(
            f"Unreadable photos, duplicates and odd photos: {NOT_MEASURED}; run: python -m "
            "tools.audit --all, then make the cards with its folder as --audit."
        )
    else:
        pairs, issues = audit.get("duplicates", {}), audit.get("issues", {})
        names = ("exact", "exact_across_splits", "near", "near_across_splits")
        yield Grid(
            ("audit", "number"),
            1,
            [
                ("photos", count(audit.get("photos"))),
                ("photos looked at", count(audit.get("looked_at"))),
                ("unreadable", count(audit.get("unreadable"))),
                ("refused for their size", count(audit.get("too_large"))),
                *((f"duplicates, {n.replace('_', ' ')}", count(pairs.get(n))) for n in names),
                *((kind.replace("_", " "), count(num)) for kind, num in issues.items()),
            ],
        )
        yield Paragraph("The audit speaks of the photos it looked at.")
    notes = facts.dataset.notes if facts.dataset else audit.get("notes", [])
    if notes:
        yield Heading("Notes of the readers", 3)
        yield Bullets(list(notes))
