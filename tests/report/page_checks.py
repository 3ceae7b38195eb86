"""What every report page must keep: well-formed, no script, nothing from outside."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}
LINKS = {"src", "href", "xlink:href", "srcset", "action", "data"}
FORBIDDEN = {"script", "iframe", "object", "embed", "link", "form", "base"}


class Checker(HTMLParser):
    """Holds the open tags, and gathers links, texts and the cells of tables."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag not in FORBIDDEN and not [name for name, _ in attrs if name.startswith("on")]
        assert not [value for name, value in attrs if name == "style" and "url(" in value]
        # what axe asks for: who has no mouse can scroll, who sees nothing is told
        assert tag != "pre" and ("class", "scroll") not in attrs or ("tabindex", "0") in attrs
        assert tag != "img" or dict(attrs).get("alt")
        self.links += [value for name, value in attrs if name in LINKS]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if "style" in self.stack:
            assert "url(" not in data and "@import" not in data
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.stack):
            self.rows[-1][-1] += data


def check_page(page: str) -> Checker:
    """Assert what holds of every page; give what was read in it."""
    found = Checker()
    found.feed(page)
    found.close()
    assert not found.stack and "default-src 'none'" in page.partition("</head>")[0]
    assert len(found.ids) == len(set(found.ids))
    for link in found.links:
        inside = link.startswith("#") and link[1:] in found.ids
        assert inside or link.startswith(("data:image/png;", "data:image/jpeg;", "./")), link
    return found
