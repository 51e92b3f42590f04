"""Scaling laws L(N, T, R): fits, intervals, comparison of forms, best budgets, saturation, onsets.

N: parameters; T: training tokens; L: loss, nats per token; R: rank of the head; D: hidden width;
C: training FLOPs. Here a law is fitted to points that a known one made:

>>> from bottleneck import laws
>>> published = laws.ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
>>> sizes, tokens = [1e8, 1e8, 1e9, 1e9], [1e10, 1e11, 1e10, 1e11]
>>> points = laws.Points(sizes, tokens, published.predict(sizes, tokens))
>>> law = laws.fit(points, form="chinchilla", fixed={"E": 1.69, "B": 410.7, "beta": 0.28})
>>> print(f"{law.A:.1f} {law.alpha:.2f}")
406.4 0.34
>>> sizes, tokens = laws.compute_optimal(law.constants, [5.76e23])
>>> print(f"{sizes[0]:.1e} parameters, {tokens[0]:.1e} tokens")
3.2e+10 parameters, 3.0e+12 tokens

`from_runs` and `from_table` read points; `compare` chooses among `FORMS`; `bootstrap` gives
intervals; `fit_rank` fits L(R) at fixed N and T. `study_points` does all at once for `law_figure`.
`detect_saturation` tests if a loss ends above its own earlier level; `detect_onset` dates a rise.
"""

from bottleneck.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "points": ["Points", "from_runs", "from_table"],
        "forms": ["FORMS", "Form"],
        "scaling_law": ["ScalingLaw", "fit", "refit"],
        "comparison": ["Bootstrap", "Candidate", "bootstrap", "compare"],
        "budgets": ["FlopsPerToken", "IsoFlop", "compute_optimal", "isoflop"],
        "study": ["LawStudy", "study_points"],
        "figure": ["law_figure"],
        "rank": ["RankLaw", "fit_rank"],
        "saturation": ["LossSeries", "Saturation", "detect_saturation", "series_of_run"],
        "onset": ["Onset", "detect_onset"],
    },
)
