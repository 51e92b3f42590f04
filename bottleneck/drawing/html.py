"""Pieces of HTML pages: one style, tables, embedded figures, escaped text.

A page is one file, and needs no network.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bottleneck.drawing.style import save


def text(value: object) -> str:
    """Returns the value as text of a page, with markup escaped."""
    return html.escape(str(value))


def listed(items: Iterable[object]) -> str:
    """Returns "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table, which scrolls if it is wider than the page; cells are escaped."""
    head = "".join(f"<th>{text(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(figure: Figure, title: str, folder: Path, name: str) -> str:
    """Embeds a figure in the page, and writes it to the folder as NAME.png and NAME.svg."""
    save(figure, folder / f"{name}.png")
    data = base64.b64encode(save(figure, folder / f"{name}.svg").read_bytes()).decode()
    return f'<img alt="{text(title)}" src="data:image/svg+xml;base64,{data}">'


def page(title: str, body: str, style: str = "") -> str:
    """Returns a whole page from a plain title, an HTML body, and CSS beyond `STYLE`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #1b1b1b;
  background: #fff; max-width: 1000px; margin: 2.5rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { margin-top: 2.75rem; }
p { margin: .25rem 0; max-width: 46rem; }
figure { margin: 2.75rem 0 0; break-inside: avoid; }
figure img { display: block; width: 100%; }
figcaption { max-width: 46rem; margin-top: .5rem; color: #444; font-size: .92rem; }
.note { margin-top: 1.5rem; color: #666; font-size: .92rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; }
th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid #1b1b1b; }
td { border-bottom: 1px solid #e4e4e4; }
.summary th + th, .summary td + td { text-align: right; }
.summary td { white-space: nowrap; }
dl { display: grid; grid-template-columns: 9.5rem 1fr; gap: .5rem 1rem; font-size: .92rem; }
dt { font-weight: 600; }
dd { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
th:last-child, td:last-child { padding-right: 0; }
@media print {
  html { font-size: 10.5px; }
  body { max-width: none; margin: 0; padding: 0; }
  .wide { overflow: visible; }
  section, tr { break-inside: avoid; }
}
"""

SORTING_STYLE = """
th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
"""

# A click on a heading sorts its table; a second click reverses the order. A cell's value is its
# first number, in units of k, M, G and T; cells without a number come last, by their text.
SORTING_SCRIPT = """
function sortKey(text) {
  const found = text.match(/^([+-]?[\\d.,]+(?:e[+-]?\\d+)?)(?: ([kMGT])\\b)?/);
  if (!found) return null;
  const unit = {k: 1e3, M: 1e6, G: 1e9, T: 1e12}[found[2]] || 1;
  return unit * parseFloat(found[1].replace(/,/g, ""));
}
function compareCells(a, b, sign) {
  const x = sortKey(a), y = sortKey(b);
  if (x === null || y === null) {
    return x === y ? sign * a.localeCompare(b, "en") : (x === null) - (y === null);
  }
  return sign * (x - y);
}
if (typeof document !== "undefined") {
  document.querySelectorAll("th").forEach(heading => {
    heading.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heading.parentNode.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const column = [...heading.parentNode.children].indexOf(heading);
      const body = heading.closest("table").tBodies[0];
      const rows = [...body.rows].sort((a, b) =>
        compareCells(a.cells[column].innerText, b.cells[column].innerText, sign));
      body.append(...rows);
    });
  });
}
"""
