"""Parts of HTML reports: one self-contained page, tables and bars, every text escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

_MANY_COLUMNS = 7
STYLE: Final = """
:root{color-scheme:light dark;--ink:#1d2329;--pale:#5f6b76;--line:#d9dee3;--paper:#fff;
--soft:#f4f6f8;--bar:#3b76b5;--bad:#b3261e;--doubt:#8a5a00;--good:#1a7f37}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--pale:#9aa6b1;--line:#39424b;
--paper:#15191d;--soft:#1e242a;--bar:#6ea3dc;--bad:#ff8a80;--doubt:#e8b45a;--good:#6fce8b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:26px;margin:0}h2{font-size:19px;margin:36px 0 8px}
p,summary{overflow-wrap:anywhere}.pale{color:var(--pale)}p{margin:4px 0 12px;max-width:75ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px;
margin:18px 0}
.tile{background:var(--soft);border-radius:8px;padding:10px 12px;border-left:4px solid var(--line)}
.tile b{display:block;font-size:22px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{font-size:13px;color:var(--pale)}
.bad{border-color:var(--bad)}.bad b{color:var(--bad)}
.doubt{border-color:var(--doubt)}.doubt b{color:var(--doubt)}
.good{border-color:var(--good)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}th{background:var(--soft);font-weight:600}
td.text{overflow-wrap:anywhere;min-width:7ch}.num{text-align:right}td.num{white-space:nowrap}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:0 40px}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:3px 10px;
align-items:center;font-size:14px;font-variant-numeric:tabular-nums}
.bars i{display:block;height:14px;border-radius:2px;background:var(--bar)}
.bars span{text-align:right}
details{border-top:1px solid var(--line);padding:8px 0}summary{cursor:pointer}
details .scroll{margin-top:8px}
.photos{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:112px;font-size:12px}
img{display:block;width:112px;height:112px;object-fit:contain;background:#0002;border-radius:4px}
figcaption{overflow-wrap:anywhere;color:var(--pale)}
.pair{display:grid;grid-template-columns:112px 112px;gap:4px 6px;padding:8px;font-size:12px;
background:var(--soft);border-radius:8px}.pair b{grid-column:1/-1}
@media (max-width:640px){table{font-size:12px}th,td{padding:4px 5px}
.pair{grid-template-columns:1fr 1fr;width:100%}.pair figure,.pair img{width:100%;height:auto}
.wide tr{display:grid;grid-template-columns:repeat(4,1fr);padding:6px 4px;
border-bottom:1px solid var(--line)}.wide tr:first-child{display:none}
.wide td{border:0;text-align:left}.wide td:first-child{grid-column:1/-1;font-weight:600}
.wide td.num::before{content:attr(data-label);display:block;color:var(--pale)}}
"""


class Html(str):
    """A cell of a table that is HTML already, its texts escaped."""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Put escaped parts into a page that runs no script and asks nothing of the network.

    `style` is CSS that comes after the page's own.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang=en><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def text(value: object) -> str:
    """Escape for HTML; control characters and lone surrogates are shown as escapes."""
    shown = "".join(
        sign if sign.isprintable() or sign == " " else sign.encode("unicode_escape").decode()
        for sign in str(value)
    )
    return html.escape(shown, quote=True)


def table(header: Sequence[str], num_texts: int, rows: Iterable[Sequence[object]]) -> str:
    """Lay out rows of `num_texts` texts and then numbers, each right under its heading.

    On a narrow screen a table of many columns becomes one block per row.
    """
    kinds = ["text"] * num_texts + ["num"] * (len(header) - num_texts)
    columns = list(zip(kinds, map(text, header), strict=True))
    lines = []
    for row in rows:
        shown = [f"{value:,}" if isinstance(value, int | float) else value for value in row]
        cells = zip(columns, shown, strict=True)
        lines.append(
            "<tr>"
            + "".join(
                f'<td class={kind} data-label="{name}">{_cell(value)}</td>'
                for (kind, name), value in cells
            )
            + "</tr>"
        )
    if not lines:
        return "<p>None.</p>"
    head = "".join(f"<th class={kind}>{name}</th>" for kind, name in columns)
    layout = "scroll wide" if len(header) > _MANY_COLUMNS else "scroll"
    whole = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f'<div class="{layout}">{whole}</div>'


def _cell(value: object) -> str:
    return value if isinstance(value, Html) else f"<bdi>{text(value)}</bdi>"


def bars(counts: Mapping[str, int]) -> str:
    """Draw a bar per entry, the longest across the whole width."""
    most = max(counts.values(), default=0) or 1
    return (
        "<div class=bars>"
        + "".join(
            f"<span><bdi>{text(name)}</bdi></span>"
            f'<i style="width:{num / most * 100:.2f}%"></i><span>{num:,}</span>'
            for name, num in counts.items()
        )
        + "</div>"
    )
