"""Training folds of a run and writing what they leave behind."""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import Experiment, experiment_summary, main_first, open_experiment, working_path
from leukofold.metrics import METRICS, score
from leukofold.processes import cores_per_process
from leukofold.runs import Predictions, RunFolder
from leukofold.training.trackers import CsvTracker
from leukofold.training.trainer import Trainer


def train_folds(config: Config, run: RunFolder, folds: Sequence[int], resume: bool, debug: bool) -> None:
    """Trains folds one after the other, on all processes together.

    Args:
        config: The resolved configuration.
        run: Where results go.
        folds: Fold numbers.
        resume: Skip complete folds and go on with interrupted ones.
        debug: A few batches of everything.

    Raises:
        UserError: The data cannot be used, or the run's folder holds something else.
    """
    accelerator = make_accelerator(config, run)
    try:
        experiment = main_first(
            accelerator, lambda: open_experiment(config, run, debug, progress=accelerator.is_local_main_process)
        )
        if accelerator.is_main_process:
            print(experiment_summary(experiment))
            print(
                f"  {config.model.backbone}, {accelerator.num_processes} process(es) on {accelerator.device.type}, "
                f"precision {accelerator.mixed_precision}, results in {working_path(run.path)}"
            )
        for fold in folds:
            train_fold(experiment, fold, accelerator, resume)
    finally:
        accelerator.end_training()  # leaves the process group, so that no process aborts at another's end


def make_accelerator(config: Config, run: RunFolder) -> Accelerator:
    """Sets up devices, processes and precision.

    Args:
        config: The resolved configuration.
        run: Where trackers write.

    Returns:
        The accelerator.

    Raises:
        UserError: The processes that were started did not join.
    """
    training = config.training
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else processes that torchrun starts would not join on a CPU
        mixed_precision=training.precision,
        gradient_accumulation_steps=training.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=list(training.trackers) or None,
        project_dir=str(run.path),
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would train alone and write over the others
        raise UserError(
            f"{started} processes were started, but only {accelerator.num_processes} joined; see the launcher"
        )
    if accelerator.device.type == "cpu":  # accelerate launch leaves one thread; the loaders' work is small beside it
        torch.set_num_threads(cores_per_process())
    torch.use_deterministic_algorithms(training.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not training.deterministic
    return accelerator


def train_fold(experiment: Experiment, fold: int, accelerator: Accelerator, resume: bool) -> dict[str, Any]:
    """Trains one fold, scores its held-out and the test images, and writes the results.

    Args:
        experiment: Data, folds and configuration.
        fold: The fold that is held out.
        accelerator: Devices and processes.
        resume: Skip the fold if complete, go on with it if interrupted.

    Returns:
        The fold's metrics, as in ``metrics.json``.

    Raises:
        UserError: The run's folder holds results of another configuration, data or classes.
    """
    folder, metadata = experiment.run.fold(fold), experiment.metadata(fold)
    experiment.run.need_same(metadata, replaced=None if resume else fold)
    if resume and folder.complete:
        if accelerator.is_main_process:
            print(f"fold {fold}: complete already, skipped ({working_path(folder.path)})")
        return folder.metrics()
    trainer = Trainer(experiment, fold, accelerator)
    resumed = resume and trainer.resume()
    if accelerator.is_main_process:
        if not resumed:
            experiment.run.begin_fold(fold, metadata, experiment.labelled.assign(fold=experiment.folds))
        train, held_out = trainer.train_frame, trainer.held_out
        start = f", resumed after epoch {trainer.progress.epoch}" if resumed else ""
        print(
            f"fold {fold}: {len(train)} images of {train.group.nunique()} groups trained on, "
            f"{len(held_out)} of {held_out.group.nunique()} held out, "
            f"{len(set(train.group) & set(held_out.group))} groups in both{start}"
        )
    accelerator.wait_for_everyone()
    accelerator.trackers = []  # else the fold before would go on writing
    accelerator.init_trackers(f"fold{fold}")
    accelerator.trackers.append(CsvTracker(folder, list(trainer.progress.history)))
    began = time.perf_counter()
    trainer.fit()
    metrics = _write_results(experiment, trainer, time.perf_counter() - began)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return metrics


def _write_results(experiment: Experiment, trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Scores the best weights, with test-time augmentation, and writes the fold's results."""
    names, fold, competition = experiment.table.class_names, trainer.fold, experiment.competition
    oof_logits = trainer.predict(trainer.held_out, f"fold {fold} held-out images")
    test_logits = trainer.predict(experiment.test, f"fold {fold} test images")
    oof = Predictions.of(trainer.held_out, oof_logits, names, labelled=True)
    test = Predictions.of(experiment.test, test_logits, names, labelled=False)
    assert oof.label is not None
    own = ~oof.is_external
    metrics = {
        "fold": fold,
        "metric": competition.metric,
        "competition_rows": {"images": int(own.sum()), **score(oof.label[own], oof.logits[own])},
        "all_rows": {"images": len(own), **score(oof.label, oof.logits)},
        "epochs": trainer.progress.epoch,
        "best_epoch": trainer.progress.best_epoch,
        "tta": experiment.config.inference.tta,
        "training_seconds": round(seconds, 1),
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "rendered": experiment.rendered,
    }
    if trainer.accelerator.is_main_process:
        experiment.run.finish_fold(fold, oof, test, metrics)
        value = metrics["competition_rows"][competition.metric]
        print(
            f"fold {fold}: out-of-fold {METRICS[competition.metric]} {value:.4f} on {own.sum()} images "
            f"(best epoch {trainer.progress.best_epoch}, {experiment.config.inference.tta} TTA, {seconds:.0f} s)"
        )
    return metrics
