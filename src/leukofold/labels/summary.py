"""What an analysis of labels says, in a few lines for the log."""

from collections.abc import Sequence
from pathlib import Path

from leukofold.blending.loading import caveats
from leukofold.files import working_path
from leukofold.labels.analysis import LabelAnalysis
from leukofold.labels.folder import source_counts
from leukofold.labels.outliers import SMALLEST_FOLD
from leukofold.labels.truth import PlantedScore

TOP_PAIRS = 5


def analysis_summary(analysis: LabelAnalysis, files: Sequence[Path]) -> str:
    """Describes an analysis and its files for people.

    Args:
        analysis: The analysis.
        files: What was written.

    Returns:
        Lines: what was judged and what was not, issues per source and pair, outliers, the planted errors, files.
    """
    names, runs = analysis.class_names, analysis.runs
    lines = [
        f"{analysis.competition.title}: labels of {len(analysis.images)} images, judged out of fold by "
        f"{', '.join(run.name for run in runs)}"
    ]
    lines += [f"  {caveat}" for caveat in caveats(runs)]
    for run in runs:
        if run.missing_folds:
            split = run.split
            missing = ", ".join(f"fold {k} ({(split.fold == k).sum()} images)" for k in run.missing_folds)
            lines.append(f"  not trained yet, so not judged: {run.name} {missing}")
    lines.append("  label issues")
    for row in source_counts(analysis).itertuples():
        lines.append(f"    {row.source}: {row.issues} of {row.images} images ({row.share:.1%})")
    sizes = analysis.issues.groupby(["given", "suggested"]).size()
    for given, suggested in analysis.pairs[:TOP_PAIRS]:
        lines.append(f"    given {names[given]}, suggested {names[suggested]}: {sizes[given, suggested]}")
    if len(analysis.issues) > len(analysis.images) / 3:
        lines.append("  more than a third of all labels: the networks are too weak for such a list, do not train by it")
    lines += _outlier_lines(analysis)
    if analysis.planted is not None:
        lines.append(_planted_line(analysis.planted))
    folder = files[0].parent
    sheets = sum(path.parent != folder for path in files)
    own = ", ".join(path.name for path in files if path.parent == folder)
    pages = f", {sheets} pages in sheets/" if sheets else ""
    return "\n".join([*lines, f"  written to {working_path(folder)}: {own}{pages}"])


def _outlier_lines(analysis: LabelAnalysis) -> list[str]:
    """Counts outliers and near duplicates."""
    found = analysis.outliers
    if found is None:
        return []
    lines = [
        f"  {int(found.is_outlier.sum())} outliers, {int(found.is_near_duplicate.sum())} near duplicates among the "
        "embeddings of each fold"
    ]
    if analysis.small_folds:
        folds = ", ".join(map(str, analysis.small_folds))
        lines.append(f"  not looked for in fold {folds}: fewer than {SMALLEST_FOLD} images")
    return lines


def _planted_line(planted: PlantedScore) -> str:
    """Tells how well the list finds what was planted."""
    if not planted.planted:
        return f"  no wrong labels are planted in the rendered images: all {planted.listed} issues are false alarms"
    return (
        f"  of {planted.planted} wrong labels planted in the rendered images {planted.found} are listed: precision "
        f"{planted.precision:.3f}, recall {planted.recall:.3f}, average precision of the ranking "
        f"{planted.average_precision:.3f}, true class suggested for {planted.suggested_right:.1%} of those found"
    )
