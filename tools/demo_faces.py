"""Draw synthetic aligned pet faces from the tables of `tools.demo_animals`.

Units of the frame: x from -0.5 to 0.5 with the eyes at -0.25 and 0.25, y from 0 (top) to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.demo_animals import BREEDS, FACES, IRISES, PARTS, PROFILES, RGB, Face

WIDTH_STD = 0.045  # spread of the face width between individuals, as a fraction
GENDER_SHIFT = 0.385 * WIDTH_STD  # males wider, females narrower: the best guess is right for 65 %
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 37)[:-1]) for f in (np.cos, np.sin)], axis=1)
RAGGED = np.where(np.arange(36) % 2, 1.0, -1.0)[:, None]


@dataclass
class Individual:
    """What all photos of one record share."""

    face: Face
    parts: tuple[str, ...]  # keys of PARTS that lie on the head
    palette: dict[str, np.ndarray]  # colour name -> RGB, the animal's own ones on top of RGB
    width: float
    ears: float
    freckles: np.ndarray  # (3, 2) x, y
    patches: np.ndarray  # (n, 3) x, y, radius


def draw_individual(
    species: str, breed: str, colour: str, pattern: str, gender: str, rng: np.random.Generator
) -> Individual:
    """Draw the fixed traits of one animal; a label that the species lacks is empty."""
    face = replace(FACES[species], **BREEDS.get(species, {}).get(breed, {}))
    coat = colour or face.coat or species
    if species == "dog" and rng.random() < (0.8 if breed == "Mixed Breed" else 0.12):
        coat = str(rng.choice(["Brown", "Black", "Cream", "Red", "Gray", "White"]))
    base = np.asarray(RGB.get(f"{species} {coat}", RGB[coat]))
    palette = {name: np.asarray(value) for name, value in RGB.items()}
    fur = np.clip(base * rng.normal(1, 0.05) + rng.normal(0, 6, 3), 20, 252)
    palette |= {"fur": fur, "shade": fur * 0.62, "light": fur * 0.35 + palette["white"] * 0.65}
    palette["patch"] = palette["white"] if base.mean() < 215 else palette["Brown"]
    palette["ear"] = palette["Sable" if pattern in ("Seal", "Himalayan") else "fur"] * 0.86
    palette["flap"] = palette["ear"] * 0.86
    palette["inside"] = palette["ear"] * 0.5 + palette["rose"] * 0.5
    num_patches = 4 if pattern in ("Pied", "Mosaic") else 0
    iris = str(rng.choice(IRISES.get(species, ("eyes",))))
    palette["iris"] = palette[iris] * rng.uniform(0.85, 1.05)
    return Individual(
        face,
        ("blaze" if colour in ("BlackandWhite", "Black and White") else "", pattern, face.marking),
        palette,
        width=1 + rng.normal(0, WIDTH_STD) + (GENDER_SHIFT if gender == "male" else -GENDER_SHIFT),
        ears=rng.normal(1, 0.07),
        freckles=rng.uniform((-0.3, 0.1), (0.3, 0.8), (3, 2)),
        patches=rng.uniform((-0.4, -0.4, 0.1), (0.4, 0.3, 0.2), (4, 3))[:num_patches],
    )


def ink(colour: np.ndarray) -> tuple[int, ...]:
    """Round an RGB colour to what Pillow draws with."""
    return tuple(np.clip(colour, 0, 255).astype(int).tolist())


class Sketch:
    """A canvas in units of the frame, turned, scaled and shifted as an imperfect alignment does."""

    def __init__(self, image: Image.Image, turn: float, scale: float, shift: np.ndarray) -> None:
        cos, sin = np.cos(turn) * scale * image.width, np.sin(turn) * scale * image.width
        self.matrix, self.unit = np.array([[cos, sin], [-sin, cos]]), scale * image.width
        self.shift = (shift + 0.5) * image.width - np.array([0, 0.5]) @ self.matrix
        self.image, self.draw = image, ImageDraw.Draw(image)

    def placed(self, points: np.ndarray) -> list[float]:
        """Turn (n, 2) `points` of the frame into x, y, x, y ... of the canvas."""
        return (points @ self.matrix + self.shift).ravel().tolist()

    def polygon(self, points: np.ndarray, colour: np.ndarray) -> None:
        self.draw.polygon(self.placed(points), fill=ink(colour))

    def shape(self, kind: str, colour: np.ndarray, *numbers: float) -> None:
        """Draw one entry of PARTS with `y` counted from the top."""
        if kind.endswith("s"):
            flipped = np.array(numbers)
            flipped[: 1 if kind in ("ovals", "balls") else None : 2] *= -1
            self.shape(kind[:-1], colour, *flipped)
            self.shape(kind[:-1], colour, *numbers)
        elif kind == "oval":
            self.polygon(CIRCLE * numbers[2:] + numbers[:2], colour)
        elif kind == "ball":  # darker at the rim, lit from above
            x, y, half_width, half_height = numbers[:4]
            ring = CIRCLE * (1 + RAGGED * sum(numbers[4:])) * (half_width, half_height)
            for step, tone in enumerate((0.8, 0.87, 0.93, 0.98, 1.01, 1.04)):
                raised = (x, y - 0.04 * step * half_height)
                self.polygon(ring * (1 - 0.14 * step) + raised, colour * tone)
        elif kind == "poly":
            self.polygon(np.reshape(numbers, (-1, 2)), colour)
        else:  # line or, thinner, hair
            width = max(1, round((0.016 if kind == "line" else 0.009) * self.unit))
            points = self.placed(np.reshape(numbers, (-1, 2)))
            self.draw.line(points, ink(colour), width=width, joint="curve")

    def parts(self, name: str, who: Individual, shift_x: float = 0.0) -> None:
        """Draw the shapes of PARTS[name], if there are any, moved sideways by `shift_x`."""
        for kind, colour, *numbers in PARTS.get(name, ()):
            placed = np.array(numbers)
            placed[1 : 2 if kind.rstrip("s") in ("oval", "ball") else None : 2] += who.face.eye_y
            if not kind.endswith("s"):
                placed[: 1 if kind in ("oval", "ball") else None : 2] += shift_x
            self.shape(kind, who.palette[colour], *placed)


def draw_photo(who: Individual, size_px: int, rng: np.random.Generator) -> Image.Image:
    """Draw one photo of an animal, (size_px, size_px) RGB, at twice or thrice the size at first."""
    side = size_px * (3 if size_px < 100 else 2)
    tones = rng.uniform(60, 210) + rng.normal(0, 20, 3) + rng.normal(0, 14, (4, 4, 3))
    blurred = Image.fromarray(np.clip(tones, 0, 255).astype(np.uint8))
    sketch = Sketch(
        blurred.resize((side, side), Image.Resampling.BICUBIC),
        rng.normal(0, 0.05), rng.normal(1, 0.025), rng.normal(0, 0.012, 2),
    )  # fmt: skip
    draw_head(sketch, who, rng)
    outside = np.deg2rad(rng.normal(0, 14))
    for quarter in range(4):  # black beyond each edge of the tilted photo
        angle = outside + quarter * np.pi / 2
        out = np.array([np.cos(angle), np.sin(angle)])
        along = np.array([-out[1], out[0]])
        edge = 0.5 + out * rng.uniform(0.47, 0.72)
        corners = edge + 2 * np.array([-along, along, along + out, out - along])
        sketch.draw.polygon((corners * side).ravel().tolist(), fill=(0, 0, 0))
    return develop(sketch.image, size_px, rng)


def draw_head(sketch: Sketch, who: Individual, rng: np.random.Generator) -> None:
    """Draw body, ears, head, markings, muzzle and eyes; `rng` gives the expression."""
    face, colour = who.face, who.palette
    head_y, half_width, half_height = face.head
    half_width *= who.width
    sketch.shape("ball", colour["fur"] * 0.85, 0, 1.12, 0.46, 0.32)
    if face.muzzle == "cone":
        for radius, tone in ((1.5, 0.7), (1.32, 1.0), (1.14, 0.8)):
            ring = CIRCLE * (1 + RAGGED * 0.09) * (half_width * radius, half_height * radius)
            sketch.polygon(ring + (0, head_y - 0.06), colour["fur"] * tone)
    if face.marking == "crest":
        for x in (-0.12, 0.0, 0.12):
            sketch.shape("poly", colour["Yellow"], -0.1, head_y - 0.3, 0.1, head_y - 0.3, x, 0.02)
    if face.ear[0] != "flop":
        draw_ears(sketch, who, rng)
    under = sketch.image.copy()
    skin = colour["Cream"] if face.muzzle == "cone" else colour["fur"]
    sketch.shape("ball", skin, 0, head_y, half_width, half_height, face.fluff)
    for x, y, radius in who.patches:
        sketch.shape("oval", colour["patch"], x, y + face.eye_y, radius, radius * 0.9)
    for part in who.parts:
        sketch.parts(part, who)
    outside = Image.new("L", sketch.image.size, 255)  # no marking lies beyond the head
    ring = CIRCLE * (1 + RAGGED * face.fluff) * (half_width, half_height) + (0, head_y)
    ImageDraw.Draw(outside).polygon(sketch.placed(ring), fill=0)
    sketch.image.paste(under, mask=outside)
    if face.ear[0] == "flop":
        draw_ears(sketch, who, rng)
    turned = rng.normal(0, 0.012)
    sketch.parts(face.muzzle, who, turned)
    if rng.random() < 0.35:
        sketch.parts(face.muzzle + " open", who, turned)
    for x, y in who.freckles:
        sketch.shape("oval", colour["shade"], x, y, 0.013, 0.013)
    draw_eyes(sketch, who, rng)


def draw_ears(sketch: Sketch, who: Individual, rng: np.random.Generator) -> None:
    """Draw both ears, each with its inside, a little moved in every photo."""
    profile, x, y, degrees, length, width = who.face.ear
    if profile == "none":
        return
    (tip, root), along = PROFILES[profile], np.linspace(0, 1, 14)
    half = (1 - along) ** tip * (along + 0.02) ** root
    half *= width * who.ears / half.max()
    # an ear that hangs shows its outside alone
    layers = [(1.0, "flap")] if profile == "flop" else [(1.0, "ear"), (0.62, "inside")]
    for side in (-1, 1):
        lean = np.deg2rad(degrees + rng.normal(0, 4))
        out = np.array([np.sin(lean) * side, -np.cos(lean)])
        across = np.array([-out[1], out[0]])
        for size, tone in layers:
            reach = np.outer(along * size + (1 - size) * 0.4, out * length * who.ears)
            spine, wide = np.array([x * side, y]) + reach, np.outer(half * size, across)
            outline = np.concatenate([spine + wide, (spine - wide)[::-1]])
            sketch.polygon(outline, who.palette[tone])


def draw_eyes(sketch: Sketch, who: Individual, rng: np.random.Generator) -> None:
    """Draw both eyes, the gaze and the lids changing from photo to photo."""
    face, colour = who.face, who.palette
    radius, y = face.eye, face.eye_y
    open_share = 0.35 if rng.random() < 0.06 else rng.uniform(0.82, 1.0)
    gaze = rng.normal(0, 0.1 * radius, 2)
    slit = 0.42 if face.muzzle == "pads" and radius > 0.06 else 0.62
    sketch.shape("ovals", colour["dark"], 0.25, y, radius * 1.14, radius * 1.14 * open_share)
    sketch.shape("ovals", colour["iris"], 0.25, y, radius, radius * open_share)
    for side in (-0.25, 0.25):
        x, pupil_y = side + gaze[0], y + gaze[1] * open_share
        tall, glint = 0.8 * radius * open_share, 0.27 * radius
        sketch.shape("oval", colour["dark"] * 0.4, x, pupil_y, radius * slit, tall)
        x, pupil_y = x - 0.3 * radius, pupil_y - 0.45 * tall
        sketch.shape("oval", colour["white"], x, pupil_y, glint, glint * open_share)


def develop(image: Image.Image, size_px: int, rng: np.random.Generator) -> Image.Image:
    """Shrink to the final size and add light, tint, blur and noise; what is black stays black."""
    small = image.resize((size_px, size_px), Image.Resampling.BOX)
    poor = rng.random() < 0.07  # dark, blurred and grainy
    if poor or rng.random() < 0.4:
        radius = rng.uniform(1.3, 3.0) if poor else rng.uniform(0.2, 1.0)
        small = small.filter(ImageFilter.GaussianBlur(radius * size_px / 64))
    ramp = np.linspace(-0.5, 0.5, size_px, dtype=np.float32)
    slope = rng.normal(0, 0.22, 2)
    light = rng.uniform(0.78, 1.16) * (rng.uniform(0.4, 0.7) if poor else 1)
    field = (light + slope[0] * ramp[:, None] + slope[1] * ramp)[:, :, None]
    pixels = np.asarray(small, np.float32) * (field * rng.normal(1, 0.05, 3)).astype(np.float32)
    grain = rng.standard_normal((size_px, size_px, 1), dtype=np.float32) * rng.uniform(1, 7)
    pixels += np.where(pixels.max(axis=2, keepdims=True) > 4, grain * (1 + poor), 0)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
