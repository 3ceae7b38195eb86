"""The model card of an evaluated pair of stages: every figure and fact of it from files.

Its sections are those of Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from petface.analysis.audit import ClassCount
from petface.report.card_facts import NOT_MEASURED, Facts, ModelFacts, get
from petface.report.card_figures import analyses, count, minutes, shown
from petface.report.caveats import caveats
from petface.report.document import Block, Bullets, Document, Grid, Heading, Notice, Paragraph

TO_FILL_IN: Final = "to be filled in"
_TRAINING = ("EPOCHS", "PHASE_EPOCHS", "BATCH_SIZE", "LR", "PHASE_LR", "PHASE_STAGES",
             "WEIGHT_DECAY", "SCHEDULE", "SEED", "WEIGHTS", "SAMPLER", "TAIL_MODE", "BASE_AUGMENT",
             "TAIL_AUGMENT", "LABEL_SMOOTHING", "FOCAL_GAMMA_COLOR", "FOCAL_GAMMA_IMBAL",
             "CLASS_WEIGHTS", "SELECT_BY", "WANTED_ACCURACY", "PRECISION")  # fmt: skip


def model_card(facts: Facts, classes: list[ClassCount], people: Mapping[str, str]) -> Document:
    """Build the model card; `people` holds owner, licence and contact, "" = to be filled in."""
    blocks = [
        *_details(facts, people),
        *_intended_use(),
        *_factors(facts),
        *_metrics(),
        *_evaluation_data(facts),
        *_training_data(facts),
        *analyses(facts),
        *_ethics(),
        Heading("Caveats and recommendations"),
        Bullets(caveats(facts, classes)),
    ]
    if facts.missing:
        blocks += [Heading("What could not be read", 3), Bullets(facts.missing)]
    return Document("Model card: PetFace, species and attributes in two stages", blocks)


def filled_in(people: Mapping[str, str]) -> list[Block]:
    """Say who and under what terms, or mark what a person must fill in."""
    return [
        Paragraph(f"{name}: {value}") if value else Notice(name, TO_FILL_IN)
        for name, value in people.items()
    ]


def _details(facts: Facts, people: Mapping[str, str]) -> Iterator[Block]:
    yield Heading("Model details")
    yield Paragraph(
        "Two stages of convolutional networks. Stage 1 names the species of a cropped pet face; "
        "the specialist of that species then answers its attributes (breed, colours, gender)."
    )
    yield from filled_in(people)
    yield Grid(("fact", "stage 1"), 2, _facts_of_model(facts.stage1))
    trained = [
        (
            name,
            shown(model.checkpoint.get("backbone")),
            shown(model.checkpoint.get("pretrained")),
            shown(model.final.get("epochs")),
            minutes(model),
        )
        for name, model in facts.specialists.items()
    ]
    answers = [
        (
            name,
            ", ".join(f"{head} {len(names)}" for head, names in _heads(model).items()),
            shown(model.described.get("sha256"))[:12],
        )
        for name, model in facts.specialists.items()
    ]
    yield Heading("Specialists", 3)
    header = ("specialist", "network", "start weights", "epochs", "minutes")
    yield Grid(header, 3, trained)
    yield Grid(("specialist", "heads and their classes", "sha-256 begins"), 3, answers)


def _heads(model: ModelFacts) -> dict[str, Any]:
    return dict(model.described.get("heads", {}))


def _facts_of_model(model: ModelFacts) -> list[tuple[str, str]]:
    rule, environment = model.described.get("preprocessing", {}), model.environment
    packages = environment.get("packages", {})
    size = rule.get("size_px")
    numbers = model.checkpoint.get("num_weights")
    return [
        ("file", shown(model.described.get("path"))),
        ("sha-256", shown(model.described.get("sha256"))),
        ("checkpoint format", shown(model.checkpoint.get("format"))),
        ("network", shown(model.checkpoint.get("backbone"))),
        ("numbers in the network", f"{numbers:,}" if numbers else NOT_MEASURED),
        ("start weights", shown(model.checkpoint.get("pretrained"))),
        ("input", f"RGB, {size} x {size} pixels ({rule.get('resize')})" if size else NOT_MEASURED),
        ("normalised", f"mean {rule['mean']}, deviation {rule['std']}" if rule.get("mean")
         else "none: RGB from 0 to 1"),
        ("classes", ", ".join(_heads(model).get("species", ())) or NOT_MEASURED),
        ("epochs trained, best", f"{shown(model.final.get('epochs'))}, "
         f"{shown(model.final.get('best_epoch'))}"),
        ("training minutes", minutes(model)),
        ("trained on", shown(environment.get("gpu") or environment.get("processor"))),
        ("training started", shown(environment.get("started"))),
        ("software", ", ".join(f"{k} {v}" for k, v in packages.items()) or NOT_MEASURED),
    ]  # fmt: skip


def _intended_use() -> Iterator[Block]:
    yield Heading("Intended use")
    yield Bullets(
        (
            "Research on recognising species, breed, colour and gender of pets from face crops, "
            "like those of the PetFace dataset (Shinoda & Shiohara, ECCV 2024, arXiv 2407.13555).",
            "PetFace is given out on request, for research and not for commercial use; networks "
            "trained on it inherit these terms. Whoever passes them on must check the terms.",
            "Not for finding or identifying single animals: nothing here compares two photos.",
            "Not for decisions about an animal or its owner (health, breed bans, insurance, "
            "prices): a face shows neither pedigree nor health, and gender hardly.",
            "Not for photos without a cropped face of a species that stage 1 knows.",
        )
    )


def _factors(facts: Facts) -> Iterator[Block]:
    yield Heading("Factors")
    yield Paragraph(
        "Species, and within it the class of each attribute, decide how many photos a network "
        "learned from; the figures stand per species below. Camera, light, pose, age and country "
        "are not recorded in the data, so figures by them are " + NOT_MEASURED + "."
    )
    has_analysis = (facts.folder / "analysis" / "analysis.json").is_file()
    yield Paragraph(
        "Errors by slice of the photos: see analysis/analysis.json of the evaluation."
        if has_analysis
        else f"Errors by slice of the photos (sharpness, brightness, size): {NOT_MEASURED}."
    )


def _metrics() -> Iterator[Block]:
    yield Heading("Metrics")
    yield Bullets(
        (
            "Accuracy of an attribute counts photos whose species stage 1 named right; end to end "
            "counts all photos with a known label, and a wrong species as a wrong answer.",
            "95 % intervals are over animals, not photos: photos of one animal are alike.",
            "Balanced accuracy is the mean over classes. Majority is the score of always giving "
            "the commonest training label of the species.",
            "Per animal: the photos of one animal vote with their probabilities.",
            "Calibration error (ECE): mean gap between confidence and accuracy.",
        )
    )


def _evaluation_data(facts: Facts) -> Iterator[Block]:
    yield Heading("Evaluation data")
    summary, test = facts.summary, facts.summary.get("test", {})
    counts = summary.get("status_counts", {})
    rows = [
        ("images", shown(facts.models.get("images_root"))),
        ("fingerprint of images, labels and split", shown(facts.models.get("dataset"))),
        ("images in all", count(summary.get("num_images"))),
        ("images of the test part", count(get(summary, "splits", "test", "num_images"))),
        ("animals of the test part", count(get(test, "species", "num_records"))),
        ("arithmetic", f"{shown(facts.models.get('precision'))} on "
         f"{shown(facts.models.get('device'))}"),
        ("states of the images", ", ".join(f"{k} {n:,}" for k, n in counts.items())
         or NOT_MEASURED),
    ]  # fmt: skip
    yield Grid(("fact", "value"), 2, rows)
    yield Paragraph(
        "Every animal is in one part only: train, val or test. Whether the photos are PetFace's "
        "is not recorded in the files; the folder's name is all they say."
    )


def _training_data(facts: Facts) -> Iterator[Block]:
    yield Heading("Training data")
    parts = {part: get(facts.summary, "splits", part, "num_images") for part in ("train", "val")}
    yield Paragraph(
        f"Images of the train part: {count(parts['train'])}; of the val part, which chose the "
        f"epoch and fitted the confidence: {count(parts['val'])}. More in the data card."
    )
    examples = list(facts.specialists.values())[:1]
    columns = [facts.stage1.settings, *(model.settings for model in examples)]
    names = [name for name in _TRAINING if any(name in column for column in columns)]
    header = ("setting", "stage 1", *(f"specialist {name}" for name in list(facts.specialists)[:1]))
    rows = [(n, *(str(column.get(n, "")) for column in columns)) for n in names]
    yield (
        Grid(header, len(header), rows)
        if rows
        else Paragraph(
            f"Training settings: {NOT_MEASURED} (no settings.toml beside the checkpoint)."
        )
    )


def _ethics() -> Iterator[Block]:
    yield Heading("Ethical considerations")
    yield Bullets(
        (
            "Photos of pets can show people, homes and places. The networks store no photos, but "
            "reports that show photos must stay where the data may be.",
            "Labels are what people wrote down. Breed in particular is often an opinion; a "
            "confident answer is no proof of pedigree, and must not be used against an animal or "
            "its owner.",
            "Rare species and breeds are answered worse. Who uses the answers should see the "
            "figures of that class, not the average.",
        )
    )
