"""What clients ask of the two networks, and how a batch of it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from petface.data.images import ImageError, ImageSource
from petface.inference.stages import Photo


class Engine(Protocol):
    """What the server needs of `TwoStageInference`; all of it from any thread."""

    @property
    def can_explain(self) -> bool:
        """Tell whether `explain` works with these models."""

    def prepare(self, image: ImageSource, max_pixels: int | None = None) -> Photo:
        """Decode a photo; `ImageError` for what is none."""

    def answer(self, photos: Sequence[Photo], topk: int = 3) -> list[dict[str, Any]]:
        """Answer photos as one batch."""

    def answer_animal(self, photos: Sequence[Photo | ImageError], topk: int = 3) -> dict[str, Any]:
        """Answer photos of one animal, each and together."""

    def explain(self, image: Photo, *, species: str | None, head: str, label: str | None) -> bytes:
        """Draw what speaks for an answer, as a PNG; `UserError` for an unknown name."""

    def describe(self) -> dict[str, Any]:
        """Say which models answer, ready for JSON."""


@dataclass(frozen=True, eq=False)
class One:
    """Answer one photo."""

    photo: Photo
    topk: int


@dataclass(frozen=True, eq=False)
class Animal:
    """Answer photos of one animal, each and together; errors keep their place."""

    photos: Sequence[Photo | ImageError]
    topk: int


@dataclass(frozen=True, eq=False)
class Explain:
    """Draw what speaks for an answer about a photo."""

    photo: Photo
    species: str | None
    head: str
    label: str | None


Job = One | Animal | Explain


def run_jobs(engine: Engine, jobs: Sequence[Job]) -> list[Any]:
    """Answer jobs in their order: all single photos as one batch, the others one by one.

    What an animal or an explanation raises stands in its place; what the batch raises is raised.
    """
    ones = [job for job in jobs if isinstance(job, One)]
    most = max((job.topk for job in ones), default=0)
    answers = iter(engine.answer([job.photo for job in ones], most) if ones else [])
    return [
        shortened(next(answers), job.topk) if isinstance(job, One) else _alone(engine, job)
        for job in jobs
    ]


def shortened(answer: Mapping[str, Any], topk: int) -> dict[str, Any]:
    """Keep the `topk` best of each list: they are in falling order."""

    def cut(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, "topk": entry["topk"][:topk]}

    species = answer["species"] and cut(answer["species"])
    attributes = {head: cut(entry) for head, entry in answer["attributes"].items()}
    return {**answer, "species": species, "attributes": attributes}


def _alone(engine: Engine, job: Animal | Explain) -> Any:
    try:
        if isinstance(job, Animal):
            return engine.answer_animal(job.photos, job.topk)
        return engine.explain(job.photo, species=job.species, head=job.head, label=job.label)
    except Exception as error:  # whatever it is, it is this client's alone
        return error
