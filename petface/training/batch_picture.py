"""A picture of the first batch of a training, as the network sees it, with its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from petface import files
from petface.data.loading import Batch
from petface.training.augment.mixing import Mixed

NUM_ACROSS, NUM_SHOWN, TILE_PX, TEXT_PX = 8, 32, 128, 26
_LETTERS = 21  # of a line under a tile


@dataclass(frozen=True)
class BatchPicture:
    """Where batch.png goes, and the classes of each head."""

    folder: Path
    names: Mapping[str, Sequence[str]]

    def draw(self, batch: Batch, x: Tensor, mixed: Mixed | None) -> None:
        """Draw (B, 3, H, W) float images; labels of minority classes red, two where it is mixed."""
        tiles = functional.interpolate(x[:NUM_SHOWN].cpu().clamp(0, 1), size=(TILE_PX, TILE_PX))
        num_rows = -(-len(tiles) // NUM_ACROSS)
        sheet = Image.new("RGB", (NUM_ACROSS * TILE_PX, num_rows * (TILE_PX + TEXT_PX)), "white")
        draw = ImageDraw.Draw(sheet)
        for i, tile in enumerate((tiles * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            left, top = i % NUM_ACROSS * TILE_PX, i // NUM_ACROSS * (TILE_PX + TEXT_PX)
            sheet.paste(Image.fromarray(tile), (left, top))
            of = [i] if mixed is None else [i, int(mixed.partner[i])]
            texts = [", ".join(self._labels(batch, k)) for k in of]
            lines = [text[:_LETTERS] for text in (*texts, texts[0][_LETTERS:])[:2]]
            colour = "firebrick" if batch.is_tail[i] else "black"
            draw.text((left + 2, top + TILE_PX), "\n".join(lines), colour, spacing=1)
        with files.atomic_write(self.folder / "batch.png") as handle:
            sheet.save(handle, format="PNG")

    def _labels(self, batch: Batch, number: int) -> list[str]:
        found = [(names, int(batch.labels[head][number])) for head, names in self.names.items()]
        return [names[k].encode("ascii", "replace").decode() for names, k in found if k >= 0]
