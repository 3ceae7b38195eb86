"""The answers as the OpenAPI description shows them; they are sent as the engine made them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = float


class Failure(BaseModel):
    """Why there is no answer."""

    status: str = Field(description="a word for programs, as `unreadable` or `busy`")
    message: str = Field(description="a sentence for people")


class _Entry(BaseModel):
    label: str = Field(description="the most probable class")
    topk: list[tuple[str, Probability]] = Field(description="best classes, probabilities falling")
    sure: bool | None = Field(description="null where the network was not calibrated")
    answer: str = Field(description="the label, or `unsure`")


class Species(_Entry):
    """What stage 1 says."""

    is_pet: bool | None = Field(
        description="false: looks like none of the training photos; null: cannot tell"
    )


class Attribute(_Entry):
    """What one head of a specialist says."""

    vocabulary: str = Field(description="where the class names come from")
    may_be: list[str] | None = Field(
        None, description="breeds of which one is right for 9 of 10 photos; left out if unknown"
    )


class Answer(BaseModel):
    """What is said about one photo."""

    image: None = None
    status: Literal["ok", "no_specialist", "non_finite", "unreadable", "too_large"]
    message: str | None = Field(None, description="only where there is no answer")
    species: Species | None
    attributes: dict[str, Attribute]


class FusedAnswer(BaseModel):
    """What is said about an animal by several photos together."""

    status: Literal["ok", "no_specialist", "non_finite"]
    message: str | None = None
    species: Species | None
    attributes: dict[str, Attribute]
    num_photos: int = Field(description="photos that were fused")


class AnimalAnswer(BaseModel):
    """An answer per photo, in their order, and the fused one."""

    photos: list[Answer]
    animal: FusedAnswer | None


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "failed"]
    photos_waiting: int
    uptime_s: float


class ServerLimits(BaseModel):
    """What a client must keep to."""

    max_photos: int
    max_body_mb: float
    max_pixels: int


class ModelCard(BaseModel):
    """Which models answer, and within which limits."""

    model_config = ConfigDict(extra="allow")
    engine: str
    precision: str
    can_explain: bool
    stage1: dict[str, Any]
    specialists: dict[str, dict[str, Any]]
    no_specialist: list[str]
    limits: ServerLimits


_MEANINGS = {
    400: "not a photo, not a whole form, or a Host that is not this server's",
    403: "asked by a page of another site",
    404: "unknown species, head or label, or no specialist for the species",
    408: "the body did not arrive in time; the connection is closed",
    409: "these models cannot be explained, or their answer is not finite",
    413: "too many bytes or pixels",
    415: "no multipart form",
    422: "a parameter or a field of the form is missing, unknown, too many or out of range",
    500: "a fault of the server",
    503: "too much to do now, or stopping; come again after Retry-After seconds",
}
_FAILED = {"headers": {"x-request-id": {"schema": {"type": "string"}}}}


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe these failures for FastAPI's `responses`, with those that every request may get."""
    return {
        code: {"model": Failure, "description": _MEANINGS[code]}
        for code in sorted({*codes, 400, 500})
    }


def photo_form(field: str, most: int) -> dict[str, Any]:
    """Describe the form of a request for FastAPI's `openapi_extra`."""
    photo: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
    if most > 1:
        photo = {"type": "array", "items": photo, "minItems": 1, "maxItems": most}
    form = {
        "type": "object",
        "properties": {field: photo},
        "required": [field],
        "additionalProperties": False,
    }
    kinds = "image/png, image/jpeg, image/webp, image/gif, image/bmp, image/tiff"
    content = {"schema": form, "encoding": {field: {"contentType": kinds}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}
