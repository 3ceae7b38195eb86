"""The page's files, read once: no path of a request ever reaches the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

PAGE: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class StaticFile:
    """A file with its type; browsers ask each time whether it has changed."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """Give the file, or 304 where the browser has it."""
        headers = {"etag": self.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def read_page(folder: Path = PAGE) -> dict[str, StaticFile]:
    """Read the page's files by the path they have on the server; index.html is "/"."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in _TYPES and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            name = "/" if path.name == "index.html" else f"/{path.name}"
            found[name] = StaticFile(content, _TYPES[path.suffix], etag)
    return found
