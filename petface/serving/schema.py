"""The answers as the OpenAPI description shows them; they are sent as the engine made them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["ok", "no_specialist", "non_finite", "unreadable", "too_large"]


class Failure(BaseModel):
    """Why there is no answer."""

    status: str = Field(description="a word for programs, as `unreadable` or `busy`")
    message: str = Field(description="a sentence for people")


class Entry(BaseModel):
    """The answer of stage 1, or of one head."""

    label: str = Field(description="the most probable class")
    topk: list[tuple[str, float]] = Field(description="best classes, probabilities falling")
    sure: bool | None = Field(description="null where the network was not calibrated")
    answer: str = Field(description="the label, or `unsure`")


class Attribute(Entry):
    """The answer of one head of a specialist."""

    vocabulary: str = Field(description="where the class names come from")
    may_be: list[str] | None = Field(None, description="holds the true breed of 9 in 10 photos")


class Answer(BaseModel):
    """The answer to one photo."""

    image: None = None
    status: Status
    message: str | None = Field(None, description="only where there is no answer")
    species: Entry | None
    attributes: dict[str, Attribute]


class FusedAnswer(Answer):
    """The answer to several photos of one animal together."""

    num_photos: int = Field(description="photos that were fused")


class AnimalAnswer(BaseModel):
    """An answer per photo, in their order, and the fused one."""

    photos: list[Answer]
    animal: FusedAnswer | None


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok"]
    photos_waiting: int
    uptime_s: float


class ModelCard(BaseModel):
    """Which models answer, and within which limits."""

    model_config = ConfigDict(extra="allow")
    engine: str
    precision: str
    can_explain: bool
    stage1: dict[str, Any]
    specialists: dict[str, dict[str, Any]]
    no_specialist: list[str]
    limits: dict[str, float] = Field(description="max_photos, max_body_mb and max_pixels")


FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure, "description": meaning}
    for code, meaning in {
        400: "not a photo, or not a whole form",
        403: "sent by a page of another site",
        404: "unknown species, head or label, or no specialist for the species",
        408: "the body did not arrive in time; the connection is closed",
        409: "these models cannot be explained, or their answer is not finite",
        413: "too many bytes or pixels",
        415: "no multipart form",
        422: "a parameter or a field of the form is missing, unknown, too many or out of range",
        500: "a fault of the server",
        503: "too much to do now; come again after Retry-After seconds",
    }.items()
}


def photo_form(field: str, most: int) -> dict[str, Any]:
    """Describe the form of a request for FastAPI's `openapi_extra`."""
    photo: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
    if most > 1:
        photo = {"type": "array", "items": photo, "minItems": 1, "maxItems": most}
    form = {"type": "object", "properties": {field: photo}, "required": [field]}
    kinds = "image/png, image/jpeg, image/webp, image/gif, image/bmp, image/tiff"
    described = {
        "schema": form | {"additionalProperties": False},
        "encoding": {field: {"contentType": kinds}},
    }
    content = {"multipart/form-data": described}
    return {"requestBody": {"required": True, "content": content}}
