"""Pictures and photos inside a page, as data: small copies, never a link."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from PIL import Image

from petface.data import images
from petface.report.page import text

PHOTO_PX: Final = 160
_MAX_PICTURE_PX = 1400  # broader pictures are scaled down


def picture(path: Path, alt: str, *, is_broad: bool = False) -> str:
    """Embed a PNG or JPEG, scaled down where it is big; nothing where it cannot be read."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            shown = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    shown.thumbnail((_MAX_PICTURE_PX, _MAX_PICTURE_PX * 4))
    stream = io.BytesIO()
    shown.quantize(128).save(stream, "PNG", optimize=True)
    kind = "picture broad" if is_broad else "picture"
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<div class=scroll><img class="{kind}" src="{source}" alt="{text(alt)}"></div>'


def photo(images_root: Path, name: str, caption: Sequence[str]) -> str:
    """Embed a small JPEG copy of a photo; a name that leads out of the folder is not opened."""
    lines = "<br>".join(f"<bdi>{text(line)}</bdi>" for line in caption)
    path = PurePosixPath(name)
    shown = ""
    if not path.is_absolute() and ".." not in path.parts and "\0" not in name:
        try:
            pixels = images.decode(images_root / path)
            small = images.resize(pixels, PHOTO_PX, "letterbox")
            stream = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(small)).save(stream, "JPEG", quality=75)
            encoded = base64.b64encode(stream.getvalue()).decode("ascii")
            shown = f'<img src="data:image/jpeg;base64,{encoded}" alt="{text(name)}">'
        except images.ImageError:  # gone or changed since
            shown = "cannot be read<br>"
    return f"<figure>{shown}<figcaption>{lines}</figcaption></figure>"
