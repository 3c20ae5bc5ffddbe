"""Training folds of a run and writing what they leave behind."""

import hashlib
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from leukofold.config import Config, ModelConfig
from leukofold.errors import UserError, first_line
from leukofold.experiment import Experiment, experiment_summary, open_experiment
from leukofold.files import sha256, working_path
from leukofold.leakage import check_leakage
from leukofold.metrics import METRICS, score
from leukofold.runs import Predictions, RunFolder, chosen_on_scored, split_text
from leukofold.training.launch import main_first, main_only, make_accelerator
from leukofold.training.trackers import CsvTracker
from leukofold.training.trainer import Trainer

OPEN, BEGUN, COMPLETE = "open", "begun", "complete"

if TYPE_CHECKING:
    from leukofold.training.machine import MachineTrainer

    FoldTrainer = Trainer | MachineTrainer


def train_folds(
    config: Config, run: RunFolder, folds: Sequence[int], resume: bool, debug: bool, beside: Sequence[int] = ()
) -> None:
    """Trains folds one after the other, on all processes together.

    Args:
        config: The resolved configuration.
        run: Where results go.
        folds: Fold numbers.
        resume: Skip complete folds and go on with interrupted ones; else they are trained afresh.
        debug: A few batches of everything.
        beside: Folds that other processes train by the same command.

    Raises:
        UserError: The data cannot be used, or the run's folder holds something else.
    """
    accelerator = make_accelerator(config.training, run)
    replaced = () if resume else range(config.folds.count) if debug else (*folds, *beside)
    with run.replacing_folds(folds) if accelerator.is_main_process and not resume else nullcontext():
        experiment = main_first(
            accelerator, lambda: open_experiment(config, run, debug, progress=accelerator.is_local_main_process)
        )
        if accelerator.is_main_process:
            print(experiment_summary(experiment))
            print(
                f"  {config.model_title}, {accelerator.num_processes} process(es) on {accelerator.device.type}, "
                f"precision {accelerator.mixed_precision}, results in {working_path(run.path)}"
            )
        for fold in folds:
            own = make_accelerator(config.training, run)
            train_fold(experiment, fold, own, resume, replaced)
            own.free_memory()


def train_fold(
    experiment: Experiment,
    fold: int,
    accelerator: Accelerator,
    resume: bool,
    replaced: Collection[int],
) -> None:
    """Trains one fold, scores its held-out and the test images, and writes the results.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        accelerator: Devices and processes.
        resume: Skip the fold if complete, go on with it if interrupted.
        replaced: Folds that are trained afresh by this command.

    Raises:
        UserError: The run's folder holds results of another configuration, data or classes; what is trained on leaks
            into what is scored; or another process is training the fold.
    """
    run, metadata = experiment.run, _made_of(experiment, fold, accelerator)
    run.need_same(metadata, {*replaced, *run.to_be_replaced()})
    say = print if accelerator.is_main_process else lambda *_: None
    complete = f"fold {fold}: complete already, skipped ({working_path(run.fold(fold).path)})"
    if resume and _state_of(run, fold, accelerator) == COMPLETE:
        say(complete)
        return
    trainer = _make_trainer(experiment, fold, accelerator)
    verdict = check_leakage(experiment, fold, trainer.train_frame, trainer.held_out, trainer.teachers)
    with ExitStack() as alone:  # from here on something is written
        main_only(accelerator, partial(alone.enter_context, run.training_alone(fold)))
        state = _state_of(run, fold, accelerator)
        if resume and state == COMPLETE:  # since it was looked at first
            say(complete)
            return
        if resume and state == BEGUN and trainer.resume():
            say(f"fold {fold}: resumed after epoch {trainer.progress.epoch}")
        else:
            if run.fold(fold).complete:
                say(f"fold {fold}: replaces an earlier training in {working_path(run.fold(fold).path)}")
            made_of = {**metadata, **_known_of(experiment, trainer)}
            main_only(accelerator, partial(_begin, experiment, fold, made_of, replaced))
        say(f"{_what_is_trained(trainer)}\n{verdict}")
        accelerator.wait_for_everyone()
        _train(experiment, trainer)


def _train(experiment: Experiment, trainer: "FoldTrainer") -> None:
    """Trains a fold that has begun to its end, and writes its results."""
    accelerator = trainer.accelerator
    accelerator.init_trackers(f"fold{trainer.fold}")
    accelerator.trackers.append(CsvTracker(trainer.folder, list(trainer.progress.history)))
    began = time.perf_counter()
    try:
        trainer.fit()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UserError(f"training.deterministic: {first_line(error)}; set it to false for this network") from None
    _write_results(experiment, trainer, time.perf_counter() - began)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()


def _state_of(run: RunFolder, fold: int, accelerator: Accelerator) -> str:
    """Tells how far a fold is, as the main process sees it: a shared disk may show others something else."""
    seen = [OPEN if fold in run.to_be_replaced() else COMPLETE if run.fold(fold).complete else BEGUN]
    if accelerator.num_processes > 1:
        broadcast_object_list(seen)
    return seen[0]


def _begin(experiment: Experiment, fold: int, made_of: dict[str, Any], replaced: Collection[int]) -> None:
    """Begins a fold, where the run's others are of the same settings still."""
    run = experiment.run
    with run.beginning_alone():
        run.need_same(made_of, {*replaced, *run.to_be_replaced()})
        run.begin_fold(fold, made_of, experiment.labelled.assign(fold=experiment.folds))


def _known_of(experiment: Experiment, trainer: "FoldTrainer") -> dict[str, Any]:
    """Tells what is known of a fold when its network is built."""
    train, holdout = trainer.train_frame, experiment.holdout
    own = train.label[~train.is_external]
    return {
        "preprocessing": trainer.preprocessing(),
        "teachers": trainer.teachers,
        "holdout": {str(k): int(n) for k, n in holdout.split.value_counts(sort=False).items()},
        "shared_groups": _shared_groups(train, trainer.held_out, holdout),
        "training_images": {name: int((own == k).sum()) for k, name in enumerate(experiment.table.class_names)},
    }


def _made_of(experiment: Experiment, fold: int, accelerator: Accelerator) -> dict[str, Any]:
    """Tells all that a fold's result depends on, but for what is known only when its network is built."""
    split = split_text(experiment.labelled.assign(fold=experiment.folds))
    return {
        **experiment.metadata(fold),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "pretrained_sha256": _weights_digest(experiment.config.model),
        "split_digest": hashlib.sha256(split.encode()).hexdigest(),
    }


def _make_trainer(experiment: Experiment, fold: int, accelerator: Accelerator) -> "FoldTrainer":
    """Builds what trains a fold: a network's trainer, or a support vector machine's."""
    if experiment.config.svm is None:
        return Trainer(experiment, fold, accelerator)
    from leukofold.training.machine import MachineTrainer  # here, as scikit-image takes seconds

    return MachineTrainer(experiment, fold, accelerator)


def _what_is_trained(trainer: "FoldTrainer") -> str:
    """Describes a fold's images for the log, and what is to be known of its training."""
    train, held_out = trainer.train_frame, trainer.held_out
    lines = [
        f"fold {trainer.fold}: {len(train)} images of {train.group.nunique()} groups trained on, "
        f"{len(held_out)} of {held_out.group.nunique()} held out, "
        f"{len(set(train.group) & set(held_out.group))} groups in both"
    ]
    return "\n".join([*lines, *(f"  {remark}" for remark in trainer.remarks())])


def _weights_digest(model: ModelConfig) -> str | None:
    """Returns the SHA-256 of a local file of pretrained weights: its path alone does not tell what it holds."""
    path = model.pretrained
    return sha256(path) if isinstance(path, Path) and path.is_file() else None


def _write_results(experiment: Experiment, trainer: "FoldTrainer", seconds: float) -> None:
    """Scores the best weights, with test-time augmentation, and writes the fold's results."""
    names, fold, competition = experiment.table.class_names, trainer.fold, experiment.competition
    oof_logits = trainer.predict(trainer.held_out, f"fold {fold} held-out images")
    test_logits = trainer.predict(experiment.test, f"fold {fold} test images")
    oof = Predictions.of(trainer.held_out, oof_logits, names, labelled=True)
    test = Predictions.of(experiment.test, test_logits, names, labelled=False)
    holdout = None
    if len(experiment.holdout):
        logits = trainer.predict(experiment.holdout, f"fold {fold} hold-out images")
        holdout = Predictions.of(experiment.holdout, logits, names, labelled=True)
    assert oof.label is not None
    own = ~oof.is_external
    metrics: dict[str, Any] = {
        "fold": fold,
        "metric": competition.metric,
        "competition_rows": {"images": int(own.sum()), **score(oof.label[own], oof.logits[own])},
        "competition_rows_without_tta": {"images": int(own.sum()), **score(oof.label[own], oof.single_view[own])},
        "all_rows": {"images": len(own), **score(oof.label, oof.logits)},
        "epochs": trainer.progress.epoch,
        "best_epoch": trainer.progress.best_epoch,
        "tta": experiment.config.inference.tta,
        "split_by": experiment.split_by,
        "training_seconds": round(seconds, 1),
        "rendered": experiment.rendered,
    }
    if holdout is not None:
        assert holdout.label is not None
        metrics["holdout_rows"] = _scores_by_split(holdout)
    if trainer.accelerator.is_main_process:
        experiment.run.finish_fold(fold, oof, test, metrics, holdout)
        value = metrics["competition_rows"][competition.metric]
        print(
            f"fold {fold}: out-of-fold {METRICS[competition.metric]} {value:.4f} on {own.sum()} images "
            f"({experiment.config.training.keep} epoch {trainer.progress.best_epoch}, "
            f"{experiment.config.inference.tta} TTA, {seconds:.0f} s)"
            + ("; image-level folds: too high" if experiment.split_by == "image" else "")
            + (
                "; optimistic: the epoch was chosen on these images"
                if chosen_on_scored(experiment.metadata(fold))
                else ""
            )
        )
        for part, scores in metrics.get("holdout_rows", {}).get("parts", {}).items():
            value = scores[competition.metric]
            print(f"  hold-out {part}: {METRICS[competition.metric]} {value:.4f} on {scores['images']} images")


def _shared_groups(train: pd.DataFrame, *scored: pd.DataFrame) -> dict[str, int]:
    """Counts the groups of scored images that are trained on too, by split or target domain; 0 is left out."""
    rows = pd.concat(scored)
    crossing = rows[rows.group.isin(set(train.group)) & ~rows.is_external]
    return {str(name): int(count) for name, count in crossing.groupby("split").group.nunique().items()}


def _scores_by_split(holdout: Predictions) -> dict[str, Any]:
    """Scores the hold-out, together and by split or target domain."""
    assert holdout.label is not None
    parts = {str(name): np.flatnonzero(holdout.split == name) for name in dict.fromkeys(holdout.split.tolist())}
    return {
        "images": len(holdout.label),
        **score(holdout.label, holdout.logits),
        "parts": {name: {"images": len(k), **score(holdout.label[k], holdout.logits[k])} for name, k in parts.items()},
    }
