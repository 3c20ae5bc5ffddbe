"""What a report says first, in a few lines for the log."""

from collections.abc import Sequence

from leukofold.blending.loading import LoadedRun, caveats
from leukofold.competitions import get_competition
from leukofold.metrics import METRICS
from leukofold.report.numbers import Numbers


def report_summary(runs: Sequence[LoadedRun], numbers: Numbers, notes: Sequence[str]) -> str:
    """Describes a report for people.

    Args:
        runs: The runs.
        numbers: The report's.
        notes: What could not be drawn.

    Returns:
        Lines: a title, warnings, and the headline metric of each run with its interval.
    """
    metadata = runs[0].metadata
    lines = [f"{get_competition(metadata['competition']).title}: {METRICS[numbers.metric]}, 95 % interval by patient"]
    lines += [f"  {caveat}" for caveat in caveats(runs)]
    for run in runs:
        if run.missing_folds:
            missing = ", ".join(map(str, run.missing_folds))
            lines.append(f"  not trained yet: {run.name} fold {missing}; the report covers the other folds only")
    width = max(len(each.name) for each in numbers.scores)
    for each in numbers.scores:
        found = each.metrics[numbers.metric]
        ends = f"{found.low:.4f} to {found.high:.4f}" if found.known else "no interval: one patient"
        lines.append(f"  {each.name:<{width}}  {found.value:.4f}  ({ends})")
    return "\n".join([*lines, *(f"  {note}" for note in notes)])
