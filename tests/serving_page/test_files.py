"""The page's files: nothing from elsewhere, nothing that could run a label, names that match."""

import re
from itertools import product

import pytest

from tests.serving_page.stub import PAGE

FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
MAX_LINES = 400
# What runs text as HTML or code, what stores, and what the policy of the server forbids.
FORBIDDEN = (
    r"(?:inner|outer)HTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\beval\b|new Function|import\(|srcdoc|javascript:"
    r"|localStorage|sessionStorage|indexedDB|document\.cookie|serviceWorker|sendBeacon"
)
INLINE = r"<style|\sstyle\s*=|<script(?![^>]*\ssrc=)|\son[a-z]+\s*="


def test_the_page_is_whole():
    assert {"index.html", "page.css", "page.js", "icon.svg"} <= set(FILES)
    assert all(len(text.splitlines()) <= MAX_LINES for text in FILES.values())


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


def test_the_patterns_find_what_they_are_for():
    assert re.findall(FORBIDDEN, "node.innerHTML = label; localStorage.x = 1; eval(x)")
    for bad in ('<p style="a:b">', "<script>x", "<img onerror=x>", "<style>"):
        assert re.findall(INLINE, bad)


def test_each_element_that_a_script_asks_for_is_there():
    (page,) = (text for name, text in FILES.items() if name == "index.html")
    ids = re.findall(r'\sid="([^"]+)"', page)
    asked = re.findall(r'\bat\("([^"]+)"\)', "".join(SCRIPTS.values()))
    assert len(ids) == len(set(ids))
    assert len(asked) > 10
    assert set(asked) <= set(ids)


def test_texts_can_be_read_in_light_and_dark():
    light, dark = re.findall(r":root \{\n(.*?)\n\s*\}", FILES["page.css"], re.S)[:2]
    for block in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block))
        for text, ground in product(("ink", "pale", "doubt", "bar"), ("paper", "soft", "tint")):
            if (text, ground) in {("doubt", "tint"), ("pale", "tint")}:
                continue  # never meet
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for ground in ("bar", "strong"):
            assert contrast(colours["on-bar"], colours[ground]) >= 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1.4.3: 1 for the same colour, 21 for black on white."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_of_black_and_white():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)
