"""The metrics of the leaderboards and of a laboratory, with intervals by bootstrap over patients.

``scores`` has the numbers, ``bootstrap`` their intervals, ``tables`` the same per class and per patient; ``weighted``
is what the bootstrap computes draws with.
"""

from leukofold.metrics.bootstrap import Interval, interval
from leukofold.metrics.scores import BINARY_METRICS, METRICS, areas_under_curves, metric_titles, score
from leukofold.metrics.weighted import AREAS

__all__ = [
    "AREAS",
    "BINARY_METRICS",
    "METRICS",
    "Interval",
    "areas_under_curves",
    "interval",
    "metric_titles",
    "score",
]
