"""Take the photos out of a form; their names and types are not looked at."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from petface.serving.limits import RefusedError


class _Form:
    """Collects the parts of a form while it is parsed; more than `most` are refused at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.parts: list[tuple[str, bytes]] = []  # field name and content
        self.is_whole = False
        self._header = self._value = self._disposition = b""
        self._data: list[bytes] = []

    def on_part_begin(self) -> None:
        if len(self.parts) == self._most:
            message = f"at most {self._most} photos at once" if self._most > 1 else "one photo only"
            raise RefusedError(413, "too_large", message)
        self._header = self._value = self._disposition = b""
        self._data = []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"")
        self.parts.append((name.decode("utf-8", "replace"), b"".join(self._data)))
        self._data = []

    def on_end(self) -> None:
        self.is_whole = True


def check_type(content_type: str, content_encoding: str) -> bytes:
    """Give the boundary of a form; 415 for another type of body, 400 without a boundary."""
    kind, options = parse_options_header(content_type)
    if kind.lower() != b"multipart/form-data":
        raise RefusedError(415, "unsupported", "send a form: content-type multipart/form-data")
    if content_encoding.lower() not in ("", "identity"):
        raise RefusedError(415, "unsupported", "send the body without content-encoding")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise _unreadable("the content-type names no boundary")
    return boundary


def photos_in(body: bytearray | bytes, boundary: bytes, field: str, most: int) -> list[bytes]:
    """Give the content of each part called `field`, in their order, 1 to `most` of them.

    400 for what is no whole form, 413 for too many photos, 422 for missing or other fields.
    """
    form = _Form(most)
    calls: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, calls)
        parser.write(body)  # type: ignore[arg-type]
        parser.finalize()
    except FormParserError:
        raise _unreadable("the body is no multipart form") from None
    if not form.is_whole:
        raise _unreadable("the form is cut off: its last boundary is missing")
    others = sorted({name for name, _ in form.parts if name != field})
    if others or not form.parts:
        what = "one photo" if most == 1 else f"1 to {most} photos"
        raise RefusedError(422, "invalid", f"send {what} as the field {field!r} and nothing else")
    return [content for _, content in form.parts]


def _unreadable(message: str) -> RefusedError:
    return RefusedError(400, "unreadable", message)
