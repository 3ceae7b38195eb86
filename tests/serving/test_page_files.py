"""The page's files: nothing from elsewhere, nothing that could run a label, names that match."""

import re
from itertools import product

import pytest

from petface.serving.app import PAGE

FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
# What runs text as HTML or code, what stores, and what the policy of the server forbids.
FORBIDDEN = (
    r"(?:inner|outer)HTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\beval\b|new Function|import\(|srcdoc|javascript:"
    r"|localStorage|sessionStorage|indexedDB|document\.cookie|serviceWorker|sendBeacon"
)
INLINE = r"<style|\sstyle\s*=|<script(?![^>]*\ssrc=)|\son[a-z]+\s*="


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_nothing_from_elsewhere(name):
    text = FILES[name].replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"\w*:?//[\w.]+\.\w+", re.sub(r"^\s*//.*$", "", text, flags=re.M))
    named = re.findall(r'(?:src|href)="([^"]+)"|from "([^"]+)"|url\(([^)]+)\)', text)
    for reference in ("".join(groups) for groups in named):
        assert reference.removeprefix("./").removeprefix("page/") in FILES


@pytest.mark.parametrize("name", FILES)
def test_a_file_runs_no_text_and_stores_nothing(name):
    assert not re.findall(FORBIDDEN, FILES[name])
    if not name.endswith((".js", ".css")):
        assert not re.findall(INLINE, FILES[name])
    if not name.endswith(".svg"):
        assert max(map(len, FILES[name].splitlines())) <= 100


def test_each_element_that_a_script_wants_is_there():
    ids = re.findall(r'\sid="([^"]+)"', FILES["index.html"])
    scripts = "".join(text for name, text in FILES.items() if name.endswith(".js"))
    wanted = re.findall(r'\bat\("([^"]+)"\)', scripts)
    assert len(ids) == len(set(ids)) and len(wanted) > 10
    assert set(wanted) <= set(ids)


def test_texts_can_be_read_in_light_and_dark():
    pairs = r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);"
    colours = {name: both for name, *both in re.findall(pairs, FILES["page.css"])}
    texts = {*product(("ink", "pale", "doubt", "bar"), ("paper", "soft", "tint"))}
    never_meet = {("doubt", "tint"), ("pale", "tint")}
    for text, ground in texts - never_meet | {("on-bar", "bar"), ("on-bar", "strong")}:
        for one, other in zip(colours[text], colours[ground], strict=True):
            assert contrast(one, other) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1.4.3: 1 for the same colour, 21 for black on white."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_of_black_and_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
