"""The animals of the demo as tables: build of a species, breeds, colours, shapes, frequencies.

Units of the frame: x from -0.5 to 0.5 with the eyes at -0.25 and 0.25, y from 0 (top) to 1.
The keys of BREEDS and COLOURS are the demo's labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Records of the real species, and the share of them whose gender is unknown.
REAL = {
    "cat": (164_100, 0.03), "chimp": (637, 0.46), "chinchilla": (1_139, 0.12),
    "degus": (1_110, 0.19), "dog": (71_613, 0.03), "ferret": (986, 0.09),
    "guineapig": (1_313, 0.14), "hamster": (1_869, 0.31), "hedgehog": (708, 0.22),
    "javasparrow": (1_220, 0.94), "parakeet": (4_727, 0.98), "pig": (1_597, 0.0),
    "rabbit": (6_465, 0.16),
}  # fmt: skip


@dataclass(frozen=True)
class Face:
    """Build of a species; a breed replaces parts of it."""

    eye_y: float
    eye: float  # radius
    head: tuple[float, float, float]  # centre y, half width, half height
    ear: tuple[str, float, float, float, float, float]  # profile, root x, y, degrees, length, width
    muzzle: str  # muzzle and marking are keys of PARTS
    marking: str = ""
    fluff: float = 0.012  # how ragged the outline is, as a fraction
    coat: str = ""  # colour of a breed where the species has no colour column


# fmt: off
NO_EAR = ("none", 0, 0, 0, 0, 0)
PROFILES = {"point": (1.0, .15), "round": (.5, .45), "long": (.42, .25), "flop": (.5, .7)}
FACES = {
    "cat": Face(.52, .09, (.58, .43, .35), ("point", .27, .37, 14, .36, .17), "pads"),
    "chimp": Face(.42, .055, (.50, .45, .46), ("round", .38, .46, 80, .24, .14), "ape"),
    "chinchilla": Face(.58, .085, (.67, .39, .31), ("round", .20, .47, 24, .46, .19), "rodent"),
    "degus": Face(.47, .07, (.58, .37, .39), ("round", .23, .31, 32, .27, .12), "rodent", "rings"),
    "dog": Face(.47, .065, (.56, .40, .38), ("flop", .29, .25, 150, .52, .13), "dog"),
    "ferret": Face(.50, .055, (.58, .42, .32), ("round", .28, .37, 34, .20, .10), "pads", "bandit"),
    "guineapig": Face(.40, .068, (.58, .41, .45), ("flop", .30, .22, 112, .26, .13), "rodent"),
    "hamster": Face(.5, .085, (.61, .48, .34), ("round", .28, .3, 26, .2, .12), "rodent", "cheeks"),
    "hedgehog": Face(.56, .06, (.67, .37, .29), ("round", .30, .45, 50, .14, .08), "cone"),
    "javasparrow": Face(.46, .055, (.54, .41, .40), NO_EAR, "thick beak", "hood"),
    "parakeet": Face(.40, .06, (.53, .40, .45), NO_EAR, "hook beak"),
    "pig": Face(.45, .05, (.57, .43, .41), ("point", .25, .30, 40, .33, .16), "snout", fluff=0.),
    "rabbit": Face(.63, .08, (.70, .38, .29), ("long", .14, .47, 10, .50, .09), "rodent"),
}
# What a breed changes, most frequent first; labels that break naive readers come early.
SHEPHERD = {"coat": "Sand", "ear": ("point", .25, .36, 12, .34, .15), "marking": "saddle"}
BREEDS: dict[str, dict[str, dict[str, Any]]] = {
    "cat": {
        "Domestic Short Hair": {},
        "Domestic Long Hair": {"fluff": .07, "marking": "ruff"},
        "Abbysinian": {"ear": ("point", .27, .37, 24, .25, .21), "marking": "rings"},
        "Siamese": {"ear": ("point", .25, .37, 26, .44, .21), "head": (.58, .37, .37)},
        "Scottish Fold": {"ear": ("flop", .26, .25, 125, .13, .12)},
        "Persian": {"ear": ("point", .29, .37, 30, .22, .11), "head": (.6, .5, .37), "fluff": .05},
    },
    "chimp": {
        "P. t. verus": {"marking": "pale"}, "P. t. schweinfurthii": {"marking": "beard"},
        "P. t. troglodytes": {"marking": "dark"},
        "P. t. ellioti": {"marking": "brow", "ear": ("round", .38, .44, 76, .34, .19)},
    },
    "dog": {
        "Mixed Breed": {"coat": "Brown"},
        "Pitbull/X  Mixed Breed": {"coat": "Gray", "head": (.56, .45, .37), "marking": "blaze",
                                   "ear": ("flop", .31, .26, 112, .26, .13)},
        "Bulldog, Olde English Playground Bulldog mix": {
            "coat": "White", "head": (.60, .48, .36), "marking": "eyepatch",
            "ear": ("flop", .33, .31, 132, .22, .12)},
        "American pitbull terrier (APBT)": {"coat": "Red", "ear": ("point", .26, .33, 32, .27, .1)},
        "German Shepherd": SHEPHERD,
        "Labrador Retriever": {"coat": "Cream", "ear": ("flop", .31, .27, 145, .40, .16)},
        "Alsatian": SHEPHERD,
        "Beagle": {"coat": "Orange", "marking": "blaze", "ear": ("flop", .31, .25, 163, .66, .16)},
    },
    "guineapig": {
        "Short Haired": {}, "Unknown Longhair": {"fluff": .09, "marking": "fringe"},
        "Abyssinian": {"fluff": .05, "marking": "rosette"},
    },
    "hamster": {
        "Syrian": {}, "Roborovski": {"marking": "brow", "eye": .105},
        "Dwarf Winter White": {"head": (.62, .43, .33), "marking": "stripe"},
    },
    "parakeet": {
        "Budgerigar": {"marking": "bars"}, "Lovebird": {"marking": "peach", "eye": .075},
        "Cockatiel": {"marking": "crest", "head": (.56, .37, .41)},
    },
    "pig": {
        "Pot Bellied": {"head": (.59, .47, .4), "ear": ("point", .27, .30, 44, .24, .11)},
        "Yorkshire": {"head": (.57, .39, .43), "ear": ("point", .22, .30, 14, .38, .16)},
        "Kunekune": {"ear": ("flop", .25, .23, 138, .34, .17)},
    },
    "rabbit": {
        "Netherland Dwarf": {"ear": ("long", .14, .47, 10, .33, .08), "head": (.69, .42, .30)},
        "Mini Lop": {"ear": ("flop", .22, .42, 155, .55, .12)},
        "Lionhead": {"fluff": .10, "marking": "ruff"}, "Dutch": {"marking": "blaze"},
    },
}
# Color1 (of the Java sparrow: Color) -> the values of Color2 that refine it; each is a pattern.
COLOURS: dict[str, dict[str, tuple[str, ...]]] = {
    "cat": {"Brown": ("Tabby", "Spotted"), "BlackandWhite": (), "Orange": ("Tabby", "Pied"),
            "Black": (), "Cream": ("Seal",), "Gray": ("Tabby", "Solid"), "White": ()},
    "chinchilla": {"Gray": ("Standard", "Mosaic"), "Beige": (), "Black Velvet": ()},
    "degus": {"Agouti": ("Solid", "Pied"), "Blue": (), "Sand": ()},
    "ferret": {"Sable": (), "Albino": (), "Cinnamon": ()},
    "guineapig": {"Brown": ("Solid", "Pied"), "Black and White": (), "Cream": ()},
    "hamster": {"Golden": ("Solid", "Banded"), "Black and White": (), "Gray": ()},
    "hedgehog": {"Salt and Pepper": (), "Albino": (), "Cinnamon": ()},
    "javasparrow": {"Normal": ("Solid", "Pied"), "White": (), "Cinnamon": (), "Silver": ()},
    "parakeet": {"Green": ("Normal", "Pied"), "Blue": ("Normal", "Pied"), "Yellow": ()},
    "pig": {"Pink": ("Solid", "Spotted"), "Black and White": (), "Brown": ()},
    "rabbit": {"Brown": ("Solid", "Pied"), "White": ("Himalayan", "Solid"),
               "BlackandWhite": (), "Gray": ()},
}
RGB = {name: tuple(bytes.fromhex(code)) for name, code in {
    "Agouti": "8c6a46", "Albino": "f6eee2", "Beige": "dcc29e", "Black": "403c44",
    "Black Velvet": "45434c", "Black and White": "403c44", "BlackandWhite": "403c44",
    "Blue": "707e98", "Brown": "966a46", "Cinnamon": "be7e52", "Cream": "f0dcba",
    "Golden": "e0a45c", "Gray": "9698a0", "Green": "76c450", "Normal": "808ca4", "Orange": "e8984a",
    "Pink": "f6beb8", "Red": "b0603e", "Sable": "70523e", "Salt and Pepper": "6c625c",
    "Sand": "dcb884", "Silver": "cad0da", "White": "f6f2ec", "Yellow": "fada54",
    "chimp": "3e3432", "parakeet Blue": "60a4e4",
    "white": "faf6f0", "dark": "2e262a", "rose": "ee9e98", "tongue": "ec7078", "skin": "c89878",
    "beak": "e65a5a", "horn": "f4c060", "cere": "7898e0", "peach": "f88c5a", "eyes": "32221e",
}.items()}
IRISES = {"cat": ("Green", "Yellow", "parakeet Blue", "Orange"), "dog": ("Sable", "Red", "eyes")}
WHISKERS = (("hairs", "white", .13, .13, .34, .09), ("hairs", "white", .13, .15, .34, .16))
# Shapes (kind, colour, numbers) with y from the eye line; a plural kind is drawn on both sides.
# ball and oval: x, y, half width, half height; poly, line and hair: x, y, x, y ...
PARTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "pads": (("balls", "light", .06, .14, .085, .062),
             ("poly", "rose", -.04, .08, .04, .08, 0, .12),
             ("lines", "dark", 0, .12, .01, .15, .05, .168, .09, .155), *WHISKERS),
    "pads open": (("oval", "tongue", 0, .19, .03, .03),),
    "rodent": (("balls", "light", .048, .15, .07, .058), ("oval", "rose", 0, .1, .034, .022),
               ("lines", "dark", 0, .12, .01, .155, .05, .175), *WHISKERS),
    "rodent open": (("poly", "white", -.022, .175, .022, .175, .02, .22, -.02, .22),),
    "dog": (("ball", "light", 0, .25, .19, .16), ("oval", "dark", 0, .16, .09, .058),
            ("oval", "skin", -.025, .14, .025, .012),
            ("lines", "dark", 0, .21, 0, .28, .05, .305, .11, .28)),
    "dog open": (("oval", "tongue", 0, .36, .05, .075), ("line", "rose", 0, .31, 0, .37)),
    "ape": (("balls", "skin", .2, .02, .17, .13), ("ball", "skin", 0, .29, .27, .17),
            ("ovals", "dark", .04, .15, .02, .014),
            ("line", "dark", -.18, .3, -.07, .325, .07, .325, .18, .3)),
    "ape open": (("oval", "dark", 0, .33, .15, .04), ("oval", "tongue", 0, .345, .1, .022)),
    "cone": (("ball", "light", 0, .15, .12, .12), ("ball", "dark", 0, .16, .055, .046),
             ("lines", "dark", 0, .24, .05, .26, .1, .235)),
    "thick beak": (("ovals", "beak", .25, 0, .085, .085), ("ball", "beak", 0, .1, .17, .11),
                   ("poly", "beak", -.16, .12, .16, .12, .06, .29, 0, .33, -.06, .29),
                   ("line", "rose", -.13, .19, 0, .22, .13, .19)),
    "hook beak": (("ball", "horn", 0, .15, .1, .08), ("balls", "cere", .045, .075, .055, .036),
                  ("poly", "horn", -.09, .16, .09, .16, .05, .26, 0, .31, -.05, .26)),
    "snout": (("ball", "rose", 0, .24, .19, .14), ("ovals", "dark", .065, .24, .028, .045),
              ("line", "dark", -.12, .42, -.05, .445, .05, .445, .12, .42)),
    "ruff": (("balls", "light", .36, .28, .15, .19), ("oval", "light", 0, .42, .3, .12)),
    "rings": (("ovals", "light", .25, 0, .135, .13),),
    "blaze": (("poly", "white", -.05, -.6, .05, -.6, .09, 0, .2, .6, -.2, .6, -.09, 0),),
    "eyepatch": (("oval", "Brown", .27, -.02, .17, .17),),
    "saddle": (("oval", "dark", 0, .26, .22, .26), ("oval", "shade", 0, -.34, .2, .22)),
    "bandit": (("oval", "light", 0, .1, .6, .3), ("ovals", "fur", .22, .0, .19, .1),
               ("oval", "fur", 0, -.3, .4, .17)),
    "cheeks": (("ovals", "white", .34, .25, .22, .15),),
    "stripe": (("poly", "shade", -.05, -.5, .05, -.5, .025, .02, -.025, .02),
               ("ovals", "white", .36, .25, .2, .16)),
    "brow": (("ovals", "white", .23, -.13, .1, .042), ("ovals", "light", .34, .25, .22, .15)),
    "pale": (("ovals", "Beige", .2, .0, .2, .17), ("oval", "Beige", 0, .3, .32, .22)),
    "beard": (("oval", "Silver", 0, .5, .36, .22),),
    "dark": (("ovals", "eyes", .2, .0, .21, .17), ("oval", "eyes", 0, .3, .32, .22)),
    "fringe": (("polys", "light", 0, -.42, .2, -.42, .09, -.03),
               ("polys", "light", .1, -.4, .4, -.3, .34, .12),
               ("polys", "shade", .02, -.42, .1, -.42, .04, .0)),
    "rosette": (("ovals", "shade", .14, -.19, .12, .09), ("ovals", "light", .14, -.19, .08, .06),
                ("ovals", "shade", .14, -.19, .035, .025)),
    "bars": (("oval", "Yellow", 0, .05, .36, .3),
             *(("lines", "shade", .02, y, .16, y - .03, .34, y + .05) for y in (-.32, -.24, -.16)),
             ("ovals", "cere", .28, .27, .07, .05)),
    "crest": (("oval", "Yellow", 0, -.05, .36, .3), ("ovals", "peach", .31, .16, .11, .1)),
    "peach": (("oval", "peach", 0, .06, .37, .36),),
    "hood": (("oval", "shade", 0, -.3, .5, .22), ("ovals", "white", .33, .19, .19, .16)),
    "Tabby": (("line", "shade", 0, -.4, 0, -.13), ("lines", "shade", .08, -.4, .07, -.16),
              ("lines", "shade", .17, -.36, .14, -.17), ("lines", "shade", .3, .08, .42, .04),
              ("lines", "shade", .29, .15, .42, .15)),
    "Spotted": tuple(("ovals", "shade", x, y, .035, .03) for x, y in (
        (.06, -.2), (.17, -.26), (.31, -.2), (.36, .12), (.29, .2), (.38, .26), (.1, -.33))),
    "Seal": (("oval", "Sable", 0, .1, .3, .24),),
    "Himalayan": (("oval", "Sable", 0, .13, .12, .13),),
    "Banded": (("oval", "white", 0, -.27, .5, .085),),
}
# fmt: on
