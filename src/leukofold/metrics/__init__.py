"""The metrics of the leaderboards and of a laboratory, with intervals by bootstrap over patients.

``scores`` has the numbers, ``bootstrap`` their intervals, ``tables`` the same per class and per patient; ``weighted``
is what the bootstrap computes draws with.
"""

from leukofold.metrics.bootstrap import Interval, interval
from leukofold.metrics.scores import AUC, BINARY_METRICS, METRICS, area_under_curve, metric_titles, score

__all__ = ["AUC", "BINARY_METRICS", "METRICS", "Interval", "area_under_curve", "interval", "metric_titles", "score"]
