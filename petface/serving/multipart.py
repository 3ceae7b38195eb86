"""Take the photos out of a form; their names and types are not looked at."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from petface.serving.limits import RefusedError


class _Form:
    """Collects the parts of a form; another field, or one too many, is refused where it begins."""

    def __init__(self, field: str, most: int) -> None:
        self._field, self._most = field, most
        self.contents: list[bytes] = []
        self.is_whole = False
        self._header = self._value = self._disposition = b""
        self._data: list[bytes] = []

    def on_part_begin(self) -> None:
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

    def on_headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"")
        if name != self._field.encode() or len(self.contents) == self._most:
            raise self.refusal()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        self.contents.append(b"".join(self._data))
        self._data = []

    def on_end(self) -> None:
        self.is_whole = True

    def refusal(self) -> RefusedError:
        """Say what the form should hold."""
        what = "one photo" if self._most == 1 else f"1 to {self._most} photos"
        message = f"send {what} as the field {self._field!r} and nothing else"
        return RefusedError(422, "invalid", message)


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

    400 for what is no whole form, 422 for none, too many and other fields.
    """
    form = _Form(field, most)
    calls: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, calls)
        parser.write(body)  # type: ignore[arg-type]
        parser.finalize()
    except FormParserError:
        raise _unreadable("the body is no multipart form") from None
    if not form.is_whole:
        raise _unreadable("the form is cut off: its last boundary is missing")
    if not form.contents:
        raise form.refusal()
    return form.contents


def _unreadable(message: str) -> RefusedError:
    return RefusedError(400, "unreadable", message)
