"""Two-stage inference for single photos, small batches and several photos of one animal.

`inference_engine` shows it to its users; a server prepares photos in many threads and answers
batches of them in one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petface.data import images
from petface.data.images import ImageError, ImageSource, Preprocessing
from petface.errors import UserError
from petface.inference import gradcam
from petface.inference import onnx_models as exported
from petface.inference.loading import (
    ONNX,
    TORCH,
    ComputeOptions,
    describe_model,
    find_specialist,
    load_stage,
)
from petface.inference.stages import UNSURE, Photo, Pixels, Stage1Model, Stage2Model, lay_out
from petface.models.network import NOT_FINITE, Network, NonFiniteError, Outputs, begin_copy

Answers = list[dict[str, Any]]  # one per photo, see `TwoStageInference.infer`


class TwoStageInference:
    """Stage 1, then the specialist of its species; specialists are loaded when first needed.

    A bundle takes the place of both checkpoints: `TwoStageInference("runs/bundle")`. A checkpoint
    without a folder predicts the species alone. `options` replace `device` and `precision`.
    """

    def __init__(
        self,
        stage1_checkpoint: str | Path,
        stage2_folder: str | Path | None = None,
        device: str | None = None,
        precision: str = "fp32",
        options: ComputeOptions | None = None,
        annotations_root: str | Path = "",
    ) -> None:
        if exported.is_bundle(stage1_checkpoint):
            stage2_folder = stage1_checkpoint
        self.options = options or ComputeOptions.choose(device, precision)
        self.stage1 = Stage1Model(stage1_checkpoint, options=self.options)
        self.stage2_folder = None if stage2_folder is None else Path(stage2_folder)
        self.annotations_root = annotations_root
        self._specialists: dict[str, Stage2Model | None] = {}
        self.rules: list[Preprocessing] = []  # of all networks, once all are loaded

    def specialist(self, species: str) -> Stage2Model | None:
        """Return the specialist of `species`, None where there is none."""
        if species not in self._specialists:
            path = find_specialist(species, self.stage2_folder)
            stage = load_stage(path, species, self.options, self.annotations_root) if path else None
            self._specialists[species] = Stage2Model(stage) if stage else None
        return self._specialists[species]

    def load_all(self) -> dict[str, Stage2Model]:
        """Load every specialist there is now, as a server does, so that photos can be small."""
        loaded = {name: found for name in self.stage1.classes if (found := self.specialist(name))}
        networks = [self.stage1.network, *(model.network for model in loaded.values())]
        self.rules = [network.preprocessing for network in networks]
        return loaded

    def prepare(
        self, image: ImageSource, max_pixels: int | None = None, rules: Sequence[Preprocessing] = ()
    ) -> Photo:
        """Decode a photo, in any thread; after `load_all` only the networks' sizes of it are kept.

        `rules`: of another network alone. `ImageError` for no photo, or more than `max_pixels`.
        """
        with images.room_for(image):
            photo = Photo(images.decode(image, max_pixels))
            for rule in (needed := rules or self.rules):
                photo.at(rule)
            if needed:
                photo.source = None
            return photo

    def answer(self, photos: Sequence[Photo] | Pixels, topk: int = 3) -> Answers:
        """Predict prepared photos as one batch; see `infer` for what each answer holds."""
        pixels = photos if isinstance(photos, Pixels) else Pixels(photos)
        (finish,) = self.answer_batches([pixels], topk)
        return finish()

    def answer_batches(
        self, batches: Iterable[Pixels], topk: int = 3
    ) -> Iterator[Callable[[], Answers]]:
        """Predict one batch after the other; yield what builds the answers of each, in order.

        A GPU is waited for once a batch: what stage 1 says of it comes back together with what the
        specialists say of the one before, while stage 1 computes the next.
        """
        before: Pixels | None = None
        finish: Callable[[Outputs], Answers] | None = None
        arrive, heads = begin_copy(()), Outputs()
        for pixels in chain(batches, (None, None)):
            if pixels:
                pixels.of_stage1 = pixels.probabilities(self.stage1.network)
            arrived, num = arrive(), len(heads)
            if finish:
                yield partial(finish, arrived[:num])
            heads, finish = (), None
            if before is not None:
                heads, finish = self._ask_specialists(before, arrived[num:], topk)
            arrive = begin_copy((*heads, *(pixels.of_stage1 if pixels else ())))
            before = pixels

    def _ask_specialists(
        self, pixels: Pixels, stage1: Outputs, topk: int
    ) -> tuple[Outputs, Callable[[Outputs], Answers]]:
        """Return what the specialists say on the device, and what makes answers of it here."""
        answers = [self._species_answer(row, topk) for rows in stage1 for row in rows]
        places: dict[str, list[int]] = {}
        for place, answer in enumerate(answers):
            if answer["species"] is not None and self.stage2_folder:
                places.setdefault(answer["species"]["label"], []).append(place)
        asked = [(self.specialist(name), own) for name, own in places.items()]
        found = [pixels.probabilities(s.network, own) if s else () for s, own in asked]

        def finish(arrived: Outputs) -> Answers:
            left = iter(arrived)
            for (specialist, own), of_device in zip(asked, found, strict=True):
                heads = [next(left) for _ in of_device]
                for number, place in enumerate(own):
                    row = [head[number] for head in heads]
                    answers[place] |= _attributes(specialist, row, topk)
            return answers

        return sum(found, ()), finish

    def _species_answer(self, probabilities: Tensor, topk: int) -> dict[str, Any]:
        """Return the answer to (K,) of stage 1, still without attributes."""
        if bool(torch.isnan(probabilities).any()):
            return _no_answer("non_finite", NOT_FINITE)
        return {**_no_answer("ok"), "species": lay_out(self.stage1.describe(probabilities, topk))}

    def fuse(self, photos: Sequence[Photo] | Pixels, topk: int = 3) -> dict[str, Any]:
        """Predict one animal from all its photos together: each head by its mean probability.

        Laid out as `infer` does, with `num_photos` that had a finite answer. `sure` was
        fitted on single photos.
        """
        pixels = photos if isinstance(photos, Pixels) else Pixels(photos)
        known = pixels.of_stage1 or pixels.probabilities(self.stage1.network)
        (stage1,) = begin_copy(known)()
        finite = [n for n, row in enumerate(stage1) if not bool(torch.isnan(row).any())]
        fused = self._species_answer(stage1[finite].mean(dim=0), topk)  # of none it is NaN
        del fused["image"]
        fused["num_photos"] = len(finite)
        if not finite or self.stage2_folder is None:
            return fused
        specialist = self.specialist(fused["species"]["label"])
        heads = pixels.probabilities(specialist.network, finite) if specialist else ()
        heads = begin_copy(heads)()
        return fused | _attributes(specialist, [head.nanmean(dim=0) for head in heads], topk)

    def infer(self, image_path: ImageSource, topk: int = 3) -> dict[str, Any]:
        """Predict one photo; return a dictionary ready for JSON.

        `status` is "ok", "no_specialist" (the species is answered all the same), "unreadable",
        "too_large" or "non_finite"; the last three come with a `message` and without an answer.
        """
        name = os.fsdecode(image_path) if isinstance(image_path, (str, os.PathLike)) else None
        try:
            (answer,) = self.answer([self.prepare(image_path)], topk)
        except ImageError as error:
            answer = refusal(error)
        return {**answer, "image": name}

    def infer_animal(self, photos: Iterable[ImageSource], topk: int = 3) -> dict[str, Any]:
        """Predict several photos of one animal, each and together; see `answer_animal`."""
        prepared: list[Photo | ImageError] = []
        for photo in photos:
            try:
                prepared.append(self.prepare(photo))
            except ImageError as error:
                prepared.append(error)
        return self.answer_animal(prepared, topk)

    def answer_animal(self, photos: Sequence[Photo | ImageError], topk: int = 3) -> dict[str, Any]:
        """Return `photos`, an answer for each in their order, and `animal`, the fused one.

        What could not be decoded keeps its place and is left out of the fused answer, which is None
        where nothing is left.
        """
        good = Pixels([photo for photo in photos if isinstance(photo, Photo)])
        answers = iter(self.answer(good, topk))
        return {
            "photos": [refusal(p) if isinstance(p, ImageError) else next(answers) for p in photos],
            "animal": self.fuse(good, topk) if good else None,
        }

    @property
    def can_explain(self) -> bool:
        """Return whether there are gradients: exported models have none."""
        return isinstance(self.stage1.network, Network)

    def explain(
        self,
        image: ImageSource | Photo,
        *,
        species: str | None = None,
        head: str = "species",
        label: str | None = None,
    ) -> bytes:
        """Draw as a PNG which places of a photo speak for an answer (Grad-CAM).

        `label` is the head's own answer where it is left out, `species` stage 1's, which
        attributes need. `UserError` for a name that does not exist; `ImageError` for no photo.
        """
        photo = image if isinstance(image, Photo) else self.prepare(image)
        model: Stage1Model | Stage2Model = self.stage1
        names: Mapping[str, tuple[str, ...]] = {"species": self.stage1.classes}
        if head != "species":
            if species is None:
                (answer,) = self.answer([photo], 1)
                if answer["species"] is None:
                    raise NonFiniteError(NOT_FINITE)
                species = str(answer["species"]["label"])
            _known("species", species, self.stage1.classes)
            specialist = self.specialist(species)
            if specialist is None:
                raise UserError(f"there is no specialist for {species}")
            model, names = specialist, specialist.vocabularies
        _known("head", head, names)
        if label is not None:
            _known(f"label of {head}", label, names[head])
        if not isinstance(model.network, Network):
            raise UserError("exported models cannot be explained: give the checkpoints instead")
        return gradcam.overlay_png(
            model.network,
            photo.at(model.network.preprocessing),
            list(names).index(head),
            None if label is None else names[head].index(label),
        )

    def describe(self) -> dict[str, Any]:
        """Describe the models, ready for JSON; loads all of them. Folders are left out."""
        loaded = self.load_all()

        def described(path: Path, species: str | None) -> dict[str, Any]:
            return {**describe_model(path, species), "path": path.name}

        return {
            "engine": TORCH if self.can_explain else ONNX,
            "precision": str(getattr(self.stage1.network, "precision", "")),
            "can_explain": self.can_explain,
            "stage1": described(self.stage1.path, None),
            "specialists": {name: described(model.path, name) for name, model in loaded.items()},
            "no_specialist": [name for name in self.stage1.classes if name not in loaded],
        }


def readable(answer: dict[str, Any]) -> str:
    """Format one answer of `TwoStageInference.infer` for a terminal."""
    if "message" in answer:
        return f"{answer['image']}: {answer['status']} ({answer['message']})"
    lines = [str(answer["image"])]
    for name, entry in [("species", answer["species"]), *answer["attributes"].items()]:
        best, *others = [f"{label} {p * 100:.1f} %" for label, p in entry["topk"]]
        if entry["sure"] is False:
            best += f" ({UNSURE})"
        lines.append(f"  {name:8s} {best}" + (f"   ({', '.join(others)})" if others else ""))
    if answer["status"] == "no_specialist":
        lines.append("  no specialist for this species: attributes are not predicted")
    return "\n".join(lines)


def refusal(error: ImageError) -> dict[str, Any]:
    """Return the answer where there is no photo."""
    return _no_answer(error.reason, str(error))


def _no_answer(status: str, message: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = {"image": None, "status": status, "species": None, "attributes": {}}
    return {**answer, "message": message} if message else answer


def _attributes(
    specialist: Stage2Model | None, probabilities: Sequence[Tensor], topk: int
) -> dict[str, Any]:
    """Return the entries of an answer that its specialist changes."""
    if specialist is None:
        return {"status": "no_specialist"}
    if any(bool(torch.isnan(head).any()) for head in probabilities):
        return {"status": "non_finite", "message": NOT_FINITE}
    heads = specialist.describe(probabilities, topk)
    return {"attributes": {head: lay_out(prediction) for head, prediction in heads.items()}}


def _known(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        shown = ", ".join(list(names)[:20])
        raise UserError(f"unknown {what} {name!r}; known: {shown}")
