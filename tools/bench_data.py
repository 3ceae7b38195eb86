"""Made-up photos to measure with: noise with a spectrum like that of photos, in PNG files."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from petface.data.catalog import Catalog
from petface.data.images import Preprocessing
from petface.data.loading import Samples
from petface.data.pack import Compression, PackedImages
from petface.data.packing import make_pack
from petface.data.sources.petface import scan

SPECIES = ("cat", "dog", "hamster")
_PHOTOS_PER_RECORD = 4


@dataclass(frozen=True)
class Tree:
    """A folder of photos of one size, read as the trainers read it."""

    folder: Path
    size_px: int
    catalog: Catalog

    @property
    def rule(self) -> Preprocessing:
        return Preprocessing(self.size_px)

    @property
    def paths(self) -> list[Path]:
        return [Path(self.catalog.path(i)) for i in range(len(self.catalog))]

    def samples(self, places: np.ndarray) -> Samples:
        """Give the images at `places` with their species; hamsters are the minority."""
        label = self.catalog.class_index[places].astype(np.int64)
        return Samples(places, {"species": label}, label == SPECIES.index("hamster"))

    def pack(self, compression: Compression = "none") -> PackedImages:
        """Open the pack of these photos, made at the first call."""
        path = self.folder / f"{compression}.bin"
        if not path.exists():
            with redirect_stdout(None), redirect_stderr(StringIO()):
                make_pack(path, self.catalog, self.rule, compression=compression)
        return PackedImages(path, self.catalog, self.rule)


def make_photos(folder: Path, num: int, size_px: int) -> Tree:
    """Write `num` photos of `size_px` and scan them."""
    draw = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size_px)] * 2))
    # The exponent gives files of about the size that photos have.
    amplitude = np.maximum(frequency, 1 / size_px) ** -1.3
    for number in range(num):
        # Channels of photos are nearly the same picture: grey plus a little of their own.
        noise = np.fft.fft2(draw.normal(size=(4, size_px, size_px))) * amplitude
        grey, *own = np.fft.ifft2(noise).real / size_px**0.5
        pixels = np.stack([grey + 0.4 * plane for plane in own], axis=2)
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        record = f"{number // _PHOTOS_PER_RECORD:06d}"
        species = SPECIES[number // _PHOTOS_PER_RECORD % len(SPECIES)]
        place = folder / "images" / species / record / f"{number % _PHOTOS_PER_RECORD:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    return Tree(folder, size_px, scan(folder / "images").catalog)
