"""The table that ends a blend: scores per fold and run, and where the files are."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from leukofold.blending.combining import Blend, competition_scores
from leukofold.blending.judging import Choice
from leukofold.blending.loading import caveats
from leukofold.blending.methods import ALL
from leukofold.competitions import get_competition
from leukofold.deciding import Decision
from leukofold.metrics import METRICS
from leukofold.runs import Predictions
from leukofold.submission import sidecar

PLAIN_TITLE = "blend, mean of logits"


def blend_summary(blend: Blend, submission: Path | None, decision: Decision | None = None) -> str:
    """Describes a blend and its files for people.

    Args:
        blend: The runs.
        decision: How the test images' classes were decided; None: by the highest logit.
        submission: The file that was written; None where the input holds no test images.

    Returns:
        Lines: a title, warnings, macro-F1 and the competition's metric per fold, what methods gained, files.
    """
    metadata = blend.metadata
    folds = sorted(set(blend.folds.tolist()))
    competition = get_competition(metadata["competition"])
    lines = [
        f"{competition.title}: {len(blend.runs)} run(s), {(~blend.oof.is_external).sum()} images scored out of fold"
    ]
    lines += [f"  {caveat}" for caveat in caveats(blend.runs)]
    if blend.runs[0].missing_folds:
        missing = ", ".join(map(str, blend.runs[0].missing_folds))
        lines.append(f"  not trained yet: fold {missing}; the scores cover the other folds' images only")
    titled = [(run.name, run.oof) for run in blend.runs] + [(PLAIN_TITLE, blend.plain)]
    if blend.choice.trial:
        titled.append((f"blend, {_trial_title(blend.choice)}", replace(blend.plain, logits=blend.choice.trial.nested)))
    width = 2 + max(len(title) for title, _ in titled)
    scored = {title: _scores(oof, blend.folds) for title, oof in titled}
    for metric in dict.fromkeys(("macro_f1", metadata["metric"])):
        lines.append(f"  {METRICS[metric]:<{width}}  " + "  ".join(f"fold {k}" for k in folds) + "   all folds")
        for title, (*parts, whole) in scored.items():
            cells = "  ".join(f"{part[metric]:6.4f}" for part in parts)
            lines.append(f"    {title:<{width - 2}}  {cells}   {whole[metric]:.4f}")
    lines += _holdout_lines(blend)
    if blend.choice.judged:
        lines += _choice_lines(blend)
    lines += _decision_lines(blend, decision)
    if submission is None:
        return "\n".join([*lines, f"  no submission: {metadata['input']} holds no test images"])
    lines += [
        f"  submission  {submission} ({len(blend.test.image_id)} test images, checked against {metadata['input']})",
        f"  origin      {sidecar(submission)}",
    ]
    return "\n".join(lines)


def _decision_lines(blend: Blend, decision: Decision | None) -> list[str]:
    """Tells of a threshold that is matched to the training images, and what the same does out of fold."""
    if decision is None or decision.oof is None:
        return []
    metric, plain, holdout = blend.metadata["metric"], blend.scores(), blend.holdout_scores()
    changes = [f"out of fold, each fold matched by itself, {decision.oof[metric]:.4f} in place of {plain[metric]:.4f}"]
    if decision.holdout is not None and holdout is not None:
        changes.append(f"hold-out {decision.holdout[metric]:.4f} in place of {holdout[metric]:.4f}")
    moved = "" if decision.threshold is None else f"{decision.threshold:+.4f} on the test images, "
    return [
        f"  threshold   {moved}for the training images' share of {blend.oof.class_names[1]}, {decision.prior:.4f}; "
        f"{METRICS[metric]} {'; '.join(changes)}"
    ]


def _holdout_lines(blend: Blend) -> list[str]:
    """Scores the runs and the blend on the images that no fold trained on or was chosen by."""
    if blend.holdout is None:
        return []
    metric, parts = blend.metadata["metric"], [""]
    names = list(dict.fromkeys(blend.holdout.split.tolist()))
    parts += names if len(names) > 1 else []  # several laboratories: together they say little
    titled = [(run.name, run.holdout) for run in blend.runs] + [("blend", blend.holdout)]
    lines = []
    for part in parts:
        scored = {
            title: competition_scores(found.rows(found.split == part) if part else found)[metric]
            for title, found in titled
            if found is not None
        }
        images = int((blend.holdout.split == part).sum()) if part else len(blend.holdout.image_id)
        lines.append(
            f"  hold-out {f'{part}, {images}' if part else f'of {images}'} images, {METRICS[metric]}: "
            + ", ".join(f"{title} {value:.4f}" for title, value in scored.items())
        )
    return lines


def _scores(oof: Predictions, folds: np.ndarray) -> list[dict[str, float]]:
    """Scores each fold, then all of them together."""
    return [competition_scores(oof, folds == k) for k in sorted(set(folds.tolist()))] + [competition_scores(oof)]


def _trial_title(choice: Choice) -> str:
    """Names what the nested scores on trial are of."""
    assert choice.trial is not None
    return "best of the other folds" if choice.asked == ALL else choice.trial.method


def _choice_lines(blend: Blend) -> list[str]:
    """Tells what methods gained over the plain mean, which one was taken and what it was fitted to."""
    choice, metric = blend.choice, METRICS[blend.metadata["metric"]]
    rows = [(one.method, one) for one in choice.judged]
    if choice.asked == ALL and choice.trial:
        rows.append((_trial_title(choice), choice.trial))
    width = max(len(title) for title, _ in rows) + 2
    lines = [f"  {f'nested folds, {metric}':<{width + 2}}  against the mean of logits, 95 % interval"]
    for title, one in rows:
        ends = f"{one.gain.low:+.4f} to {one.gain.high:+.4f}" if one.gain.known else "no interval: one group"
        gain = f"{one.gain.value:+.4f} ({ends})"
        lines.append(
            f"    {title:<{width}}  {one.value:.4f}  {gain}" + (f"  {one.verdict}" if one is choice.trial else "")
        )
    lines.append(f"  taken       {choice.method}: {choice.reason}")
    if choice.trial is None:
        return lines
    best = choice.trial
    for title, named in best.combiner.describe([run.name for run in blend.runs], blend.oof.class_names).items():
        values = ", ".join(
            f"{name} {value:+.2f}" if title == "biases" else f"{name} {value:.3f}" for name, value in named.items()
        )
        lines.append(f"  {title:<10}  {values}" + ("" if choice.taken else f" ({best.method}, not taken)"))
    return lines
