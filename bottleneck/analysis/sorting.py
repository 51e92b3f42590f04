"""Tables of a page that sort themselves: a click on a heading, another for the other direction."""

# A value is its first number, in units of k, M, G and T; what has none comes last, by its text.
SCRIPT = """
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

STYLE = """
th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
"""
