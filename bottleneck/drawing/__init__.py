"""One look for all figures, and the pieces of HTML pages.

A function that draws is `styled`, takes its colours from `styles`, and returns a matplotlib
`Figure`; `save` writes it as PNG or SVG:

    @drawing.styled
    def losses(runs):
        figure = Figure(figsize=(drawing.WIDTH, 4), layout="constrained")
        axes, look = figure.subplots(), drawing.styles(runs)
        for run in runs:
            axes.plot(*run.series("eval", "step", "loss"), **look[run.name].line)
        drawing.legend(figure, look)
        return figure

If the runs lack the data, the function raises `NothingToShow`. The module `html` has the style of
pages, `table`, `picture` and `text`.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "style": [
            *("DISTINCT", "GREY", "SMALL", "WIDTH", "NothingToShow", "Style", "label_line_ends"),
            *("legend", "log10_ticks", "log2_ticks", "plain", "save", "styled", "styles"),
        ],
        "html": [],
    },
)
