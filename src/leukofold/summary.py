"""The table that ends a blend: scores per fold and run, and where the files are."""

from pathlib import Path

from leukofold.blending.combining import Blend, competition_scores
from leukofold.competitions import get_competition
from leukofold.metrics import METRICS
from leukofold.runs import Predictions
from leukofold.submission import sidecar


def blend_summary(blend: Blend, submission: Path | None) -> str:
    """Describes a blend and its files for people.

    Args:
        blend: The runs.
        submission: The file that was written; None where the input holds no test images.

    Returns:
        Lines: a title, macro-F1 and the competition's metric per fold, warnings, files.
    """
    metadata = blend.metadata
    folds = sorted(set(blend.folds.tolist()))
    competition = get_competition(metadata["competition"])
    width = 2 + max(len("blend, mean of logits"), *(len(run.name) for run in blend.runs))
    lines = [
        f"{competition.title}: {len(blend.runs)} run(s), {(~blend.oof.is_external).sum()} images scored out of fold"
    ]
    if metadata["rendered"]:
        lines.append("  RENDERED images, drawn by this project: these scores say nothing about patients")
    if metadata["split_by"] == "image":
        lines.append("  image-level folds: patients cross them, the scores are too high")
    if blend.runs[0].missing_folds:
        missing = ", ".join(map(str, blend.runs[0].missing_folds))
        lines.append(f"  not trained yet: fold {missing}; the scores cover the other folds' images only")
    for metric in dict.fromkeys(("macro_f1", metadata["metric"])):
        lines.append(f"  {METRICS[metric]:<{width}}  " + "  ".join(f"fold {k}" for k in folds) + "   all folds")

        def row(title: str, oof: Predictions, metric: str = metric) -> str:
            cells = [f"{competition_scores(oof, blend.folds == k)[metric]:6.4f}" for k in folds]
            return f"    {title:<{width - 2}}  " + "  ".join(cells) + f"   {competition_scores(oof)[metric]:.4f}"

        lines += [row(run.name, run.oof) for run in blend.runs]
        lines.append(row("blend, mean of logits", blend.oof))
    if submission is None:
        return "\n".join([*lines, f"  no submission: {metadata['input']} holds no test images"])
    lines += [
        f"  submission  {submission} ({len(blend.test.image_id)} test images, checked against {metadata['input']})",
        f"  origin      {sidecar(submission)}",
    ]
    return "\n".join(lines)
