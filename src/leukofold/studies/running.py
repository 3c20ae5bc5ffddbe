"""Training the runs of a study, one after the other."""

import os
from collections.abc import Sequence
from pathlib import Path

from accelerate.state import AcceleratorState

from leukofold.errors import UserError
from leukofold.runs import RUNS, RunFolder
from leukofold.studies.plan import RunPlan
from leukofold.training.fold import train_folds


def train_runs(plans: Sequence[RunPlan], root: Path = RUNS) -> None:
    """Trains what is not done, and goes on with what was interrupted.

    Args:
        plans: The runs and how far they are.
        root: Where runs lie.

    Raises:
        UserError: An input is missing or a fold is of other settings (both before anything is trained), or a
            training fails; its message begins with the run's name.
    """
    wanted = [plan for plan in plans if plan.open_folds]
    for plan in wanted:
        if plan.missing:
            raise UserError(f"{plan.run.name}: {plan.missing}; leave such runs out with --only")
        other = next((fold.fold for fold in plan.folds if fold.state == "of other settings"), None)
        if other is not None:
            raise UserError(
                f"{plan.run.name}: fold {other} was trained with other settings than the study's now; give the study "
                f"another name with --name NAME, or delete {root / plan.run.name}"
            )
    for plan in wanted:
        _join_afresh()
        try:
            train_folds(plan.run.config, RunFolder(plan.run.name, root), plan.open_folds, resume=True, debug=False)
        except UserError as error:
            raise UserError(f"{plan.run.name}: {error}") from None


def _join_afresh() -> None:
    """Lets the processes of a launcher meet once more: a training leaves its process group at its end.

    The launcher's store still holds the addresses of the last meeting; those of a restart have names of their own.
    Precision, which accelerate sets once, is forgotten too.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(int(os.environ["TORCHELASTIC_RESTART_COUNT"]) + 1)
