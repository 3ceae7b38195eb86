"""The page's files: nothing from elsewhere, nothing that could run a label, names that match."""

import re

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
