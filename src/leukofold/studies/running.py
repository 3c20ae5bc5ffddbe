"""Training the runs of a study, one after the other."""

from collections.abc import Sequence
from pathlib import Path

from accelerate.state import AcceleratorState

from leukofold.errors import UserError
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.plan import RunPlan
from leukofold.training.fold import train_folds
from leukofold.training.launch import joined_processes


def train_runs(plans: Sequence[RunPlan], root: Path = RUNS) -> None:
    """Trains what is not done, and goes on with what was interrupted.

    Args:
        plans: The runs and how far they are.
        root: Where runs lie.

    Raises:
        UserError: An input or a teacher is missing or a fold is of other settings (before anything is trained), or a
            training fails; its message begins with the run's name.
    """
    wanted = [plan for plan in plans if plan.open_folds]
    for plan in wanted:
        if plan.missing:
            raise UserError(f"{plan.run.name}: {plan.missing}; leave such runs out with --only")
        other = next((fold for fold in plan.folds if fold.state.startswith("of other")), None)
        if other is not None:
            raise UserError(
                f"{plan.run.name}: fold {other.fold} was trained with {other.state.removeprefix('of ')} than the "
                f"study's now; give the study another name with --name NAME, or delete {root / plan.run.name}"
            )
    _need_teachers(wanted, root)
    with joined_processes():
        for plan in wanted:
            AcceleratorState._reset_state()  # accelerate takes a precision once
            try:
                train_folds(plan.run.config, RunFolder(plan.run.name, root), plan.open_folds, resume=True, debug=False)
            except UserError as error:
                raise UserError(f"{plan.run.name}: {error}") from None


def _need_teachers(wanted: Sequence[RunPlan], root: Path) -> None:
    """Refuses runs whose teachers are neither trained nor about to be."""
    trained: set[tuple[str, int]] = set()
    for plan in wanted:
        for teacher in plan.run.config.distillation.teachers:
            for fold in plan.open_folds:
                if (teacher, fold) not in trained and not RunFolder(teacher, root).fold(fold).complete:
                    raise UserError(
                        f"{plan.run.name}: its teacher {teacher} has no fold {fold}; train it first, or name its level "
                        "with --only too"
                    )
        trained |= {(plan.run.name, fold) for fold in plan.open_folds}
