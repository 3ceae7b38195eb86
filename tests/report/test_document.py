"""One document, two writers: nothing in a text may act as Markdown or HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from petface.report.document import (
    Bullets,
    Document,
    Grid,
    Heading,
    Notice,
    Paragraph,
    markdown_text,
    to_markdown,
    to_page,
)

HOSTILE = [
    "a|b", "`code`", "<script>alert(1)</script>", "line\nbreak", "**bold**", "[x](javascript:1)",
    "![x](http://e/x.png)", "# head", "- list", "1. one", "===", "---",
     "- - -", "+ x", "2) two", "-1", "1.5", "a_b_c", "back\\slash", "&lt;",
    "~~x~~", "tab\there", "\u202ereversed", "> quote", "$x$",
]  # fmt: skip


def unescaped(cell: str) -> str:
    """What a Markdown reader shows: a backslash before punctuation goes."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell)


class Texts(HTMLParser):
    """Collect the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 theirs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def every_place(label: str) -> Document:
    return Document(
        label,
        [Heading(label), Heading(label, 3), Paragraph(label), Notice("Note", label),
         Bullets([label]), Grid([label, "n"], 1, [(label, 3)])],
    )  # fmt: skip


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_texts_are_only_shown(label: str) -> None:
    shown = label.encode("unicode_escape").decode() if not label.isprintable() else label
    lines = to_markdown(every_place(label)).splitlines()
    assert [line for line in lines if line] == [
        f"# {markdown_text(label)}",
        f"## {markdown_text(label)}",
        f"### {markdown_text(label)}",
        markdown_text(label),
        f"> **Note:** {markdown_text(label)}",
        f"- {markdown_text(label)}",
        *lines[-3:],
    ]
    assert unescaped(markdown_text(label)) == shown
    bare = re.sub(r"\\.", "x", markdown_text(label))  # what is left could still act
    assert not re.search(r"[|`<>*_\[\]#~$\\]|^\d+[.)]\s|^([-+]\s|[-=]+$)", bare)
    header, rule, row = lines[-3:]
    for line in (header, rule, row):
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert rule == "| --- | ---: |" and unescaped(row) == f"| {shown} | 3 |"
    page = Texts(to_page(every_place(label)))
    assert set(page.tags) <= {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2",
                              "h3", "p", "bdi", "b", "ul", "li", "div", "table", "tr", "th",
                              "td"}  # fmt: skip
    assert page.texts.count(shown) == 9


def test_numbers_and_empty_tables() -> None:
    text = to_markdown(Document("T", [Grid(["a", "b"], 1, [("x", 12345), ("-1", "")])]))
    assert text == "# T\n\n| a | b |\n| --- | ---: |\n| x | 12,345 |\n| -1 |  |\n"
    assert to_markdown(Document("T", [Grid(["a"], 1, [])])) == "# T\n\nNone.\n"
    assert "<p>None.</p>" in to_page(Document("T", [Grid(["a"], 1, [])]))
