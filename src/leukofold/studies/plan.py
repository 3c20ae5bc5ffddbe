"""What of a study is done, what would run, and how long that takes.

Nothing is rendered, decoded, downloaded or written here: images are counted from the competition's lists, epochs
are timed by what earlier trainings noted, or else by a few steps of the network on random images.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError
from tqdm import tqdm

from leukofold.cells import modalities
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import external_root, held_out_always, modalities_seen, read_competition, read_external
from leukofold.inference import tta_views
from leukofold.rendering import LABELLED, is_current
from leukofold.runs import RUNS, FoldFolder, RunFolder, digest_of
from leukofold.studies.grid import Grid, StudyRun
from leukofold.studies.probe import seconds_per_image

FORWARD_SHARE = 1 / 3
"""Time of scoring an image over that of training on it: a backward pass costs about two forward passes."""

State = Literal["done", "interrupted", "to do", "of other settings", "of other images"]


@dataclass(frozen=True)
class Images:
    """How many images a run reads.

    Attributes:
        own: The competition's labelled images.
        splits: How many of them are of each of its splits; empty where they are still to be rendered.
        external: Images of external data sets.
        test: Images to predict.
        classes: K.
        modalities: Images of a cell that the network sees.
        ids: Ids of all labelled images; empty where they are still to be rendered.
    """

    own: int
    external: int
    test: int
    classes: int
    modalities: int = 1
    ids: frozenset[str] = field(default=frozenset(), compare=False)
    splits: Mapping[str, int] = field(default_factory=dict, compare=False)

    def per_fold(self, config: Config) -> tuple[float, float, float]:
        """Returns the images of a fold that are trained on, scored after each epoch, and scored at the end.

        Splits of images that are still to be rendered count as a tenth each.
        """
        folds = config.folds
        targets = sum(map(self._of, held_out_always(config)))
        held = targets + sum(self._of(name) for name in folds.holdout_splits if name not in held_out_always(config))
        if isinstance(folds.holdout, float):
            held += folds.holdout * (self.own - targets)
        own = self.own - held
        if folds.splits:
            validated = sum(map(self._of, folds.splits)) / len(folds.splits)
            return own - validated + self.external, validated, validated + self.test + held
        split = own + (self.external if folds.external == "split" else 0)
        trained = split * (len(folds.numbers) - 1) / folds.count + (own + self.external - split)
        return trained, own / folds.count, split / folds.count + self.test + held

    def _of(self, split: str) -> float:
        """Returns the number of images of a split."""
        return self.splits.get(split, 0) if self.splits else self.own / 10


@dataclass(frozen=True)
class Pace:
    """How fast a run trains.

    Attributes:
        image: Seconds per image trained on.
        epoch: Seconds per epoch; None: to be worked out from the number of images.
        source: Where this is known from.
    """

    image: float
    epoch: float | None
    source: str


@dataclass(frozen=True)
class FoldPlan:
    """One fold of a run.

    Attributes:
        fold: Its number.
        state: How far it is.
        epochs: Epochs done.
    """

    fold: int
    state: State
    epochs: int = 0


@dataclass(frozen=True)
class RunPlan:
    """One run of a study.

    Attributes:
        run: The run.
        folds: Those asked for.
        images: What it reads; None: the input is missing.
        missing: What is missing then, and what to do.
        pace: How fast it trains; None: not known.
    """

    run: StudyRun
    folds: tuple[FoldPlan, ...]
    images: Images | None
    missing: str
    pace: Pace | None

    @property
    def open_folds(self) -> list[int]:
        """The folds that are not done."""
        return [fold.fold for fold in self.folds if fold.state != "done"]

    def seconds(self, fold: FoldPlan) -> float | None:
        """Estimates the time that a fold takes at most, in seconds; None where it is not known."""
        if fold.state == "done":
            return 0.0
        if self.pace is None:
            return None
        config, epoch, scored = self.run.config, self.pace.epoch, 0.0
        if self.images is not None:
            trained, validation, at_the_end = self.images.per_fold(config)
            forward, views = FORWARD_SHARE * self.pace.image, len(tta_views(config.inference))
            scored = at_the_end * views * forward
            validated = validation * (views if config.training.validate_with_tta else 1)
            taught = trained * len(config.distillation.teachers)
            epoch = epoch or trained * self.pace.image + (validated + taught) * forward
        return None if epoch is None else (config.training.epochs - fold.epochs) * epoch + scored


def make_plan(
    grid: Grid, runs: Sequence[StudyRun], folds: Sequence[int] = (), probe: bool = False, root: Path = RUNS
) -> list[RunPlan]:
    """Finds out what of some runs is done, and how long the rest takes.

    Args:
        grid: The study; all its runs tell how fast networks train.
        runs: The runs to plan.
        folds: Fold numbers; none: all.
        probe: Whether to time the networks that nothing is known of, on this machine.
        root: Where runs lie.

    Returns:
        A plan for each run.

    Raises:
        UserError: There is no such fold, or a network cannot be built.
    """
    counted: dict[str, tuple[Images | None, str]] = {}
    plans = []
    for run in runs:
        known = run.config.folds.numbers
        unknown = [k for k in folds if k not in known]
        if unknown:
            raise UserError(
                f"--folds {unknown[0]}: {run.name} has folds {' '.join(map(str, known))}; give some of them"
            )
        folder = RunFolder(run.name, root)
        key = run.config.data.model_dump_json()
        if key not in counted:
            counted[key] = count_images(run.config)
        images = counted[key][0]
        same = not folder.folds_csv.exists() or images is None or set(folder.split().image_id) == images.ids
        states = tuple(_fold_plan(folder.fold(k), k, run.config, same) for k in folds or known)
        plans.append(RunPlan(run, states, *counted[key], _earlier_pace(grid, run, root)))
    return _with_probes(plans) if probe else plans


def count_images(config: Config) -> tuple[Images | None, str]:
    """Counts the images that a configuration reads; those still to be rendered are counted as planned.

    Args:
        config: The resolved configuration.

    Returns:
        Their numbers, and "" - or None, and what is missing.
    """
    data, external, ids = config.data, 0, set[str]()
    splits: dict[str, int] = {}
    try:
        competition = get_competition(data.competition)
        classes, seen = competition.class_names, len(modalities_seen(config))
        if data.render is not None and not is_current(data.root, data.competition, data.render):
            own = data.render.images
            test = 0 if data.competition in LABELLED else data.render.test_images
        else:
            table = read_competition(config)
            own, test = len(table.labelled), len(table.test)
            seen = len(data.modalities or modalities(table.frame))
            splits = Counter(table.labelled.split)
            ids.update(table.labelled.image_id)
        for name, source in data.external.items():
            folder = external_root(config, name)
            if source.render is not None and not is_current(folder, name, source.render):
                external += source.render.images
            else:
                rows = read_external(config, name, classes)
                external += len(rows)
                ids.update(rows.image_id)
    except UserError as error:
        return None, str(error)
    return Images(own, external, test, len(classes), seen or 1, frozenset(ids), splits), ""


def plan_summary(grid: Grid, plans: Sequence[RunPlan]) -> str:
    """Describes a plan for people: a line per run, where times are from and what is missing, and the total."""
    folds = [(plan, fold) for plan in plans for fold in plan.folds]
    done = sum(fold.state == "done" for _, fold in folds)
    lines = [f"{grid.name}: {len(plans)} run(s), {len(folds)} fold(s), {done} done"]
    notes: list[str] = []
    width = max((len(plan.run.name) for plan in plans), default=0)
    for plan in plans:
        line = f"  {plan.run.name:<{width}}  {_states(plan)}"
        note = f"input missing: {plan.missing}" if plan.missing else plan.pace.source if plan.pace else ""
        if plan.open_folds and note:
            notes += [note] if note not in notes else []
            line += f" [{notes.index(note) + 1}]"
        lines.append(line)
    lines += [f"  [{number}] {note}" for number, note in enumerate(notes, start=1)]
    known = [seconds for plan, fold in folds if (seconds := plan.seconds(fold)) is not None]
    unknown = len(folds) - len(known)
    rest = f"{unknown} fold(s) whose time is not known" if unknown else ""
    total = f"at most {duration(sum(known))}" if sum(known) else "" if unknown else "nothing is left to do"
    lines.append(f"  total: {' and '.join(part for part in (total, rest) if part)}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Writes a duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _states(plan: RunPlan) -> str:
    """Describes a run's folds, those in the same state and of the same length together."""
    together: dict[str, list[str]] = {}
    for fold in plan.folds:
        text, seconds = str(fold.state), plan.seconds(fold)
        if fold.state == "interrupted":
            text += f" after epoch {fold.epochs} of {plan.run.config.training.epochs}"
        if fold.state in ("interrupted", "to do"):
            text += ", time not known" if seconds is None else f", at most {duration(seconds)} a fold"
        together.setdefault(text, []).append(str(fold.fold))
    return "; ".join(f"fold {' '.join(folds)}: {text}" for text, folds in together.items())


def _fold_plan(folder: FoldFolder, fold: int, config: Config, same_images: bool) -> FoldPlan:
    """Tells how far a fold is."""
    metadata = folder.metadata()
    if metadata and digest_of(metadata) != config.digest():
        return FoldPlan(fold, "of other settings")
    if metadata and not same_images:
        return FoldPlan(fold, "of other images")
    if folder.complete:
        return FoldPlan(fold, "done")
    history = _history(folder)
    if history is None or not folder.state.exists():
        return FoldPlan(fold, "to do")
    return FoldPlan(fold, "interrupted", min(int(history.epoch.iloc[-1]), config.training.epochs))


def _history(folder: FoldFolder) -> pd.DataFrame | None:
    """Reads a fold's epochs; None where there are none yet."""
    try:
        history = pd.read_csv(folder.history)
    except (OSError, ValueError):
        return None
    columns = {"epoch", "seconds", "images_per_second"}
    return history if len(history) and columns <= set(history.columns) else None


def _earlier_pace(grid: Grid, run: StudyRun, root: Path) -> Pace | None:
    """Takes the pace from the newest history of the same run, else of another run with the same work to do."""
    work = _work(run.config.resolved())
    found = []
    for other in grid.runs:
        for path in RunFolder(other.name, root).path.glob("fold[0-9]*"):
            folder = FoldFolder(path)
            metadata, history = folder.metadata(), _history(folder)
            if metadata and history is not None and _work(_resolved(metadata)) == work:
                age = folder.history.stat().st_mtime
                found.append(((other.name == run.name, age), metadata, history, f"{other.name} {path.name}"))
    if not found:
        return None
    _, metadata, history, where = max(found, key=lambda each: each[0])
    where += f" ({metadata['processes']} process(es) on {metadata['device']})"
    return Pace(1 / float(history.images_per_second.median()), float(history.seconds.median()), f"times as in {where}")


def _resolved(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a fold's configuration, keys that are newer than the fold at their defaults."""
    try:
        return Config.model_validate(metadata["config"]).resolved()
    except ValidationError:  # a key is gone, or takes other values now
        return {}


def _work(config: Mapping[str, Any]) -> str:
    """Returns what decides how long an epoch takes: network, image size, data, folds, precision."""
    if not config:
        return ""
    training, data, folds = config["training"], config["data"], config["folds"]
    return json.dumps(
        [
            [config["model"].get(key) for key in ("backbone", "head", "frozen", "normalisation", "fusion")],
            [data.get("modalities") and len(data["modalities"]), len(config["distillation"]["teachers"])],
            config.get("svm"),
            [config["image"].get(key) for key in ("size", "input_size")],
            [data["competition"], data["render"]],
            {name: [source["classes"], source["render"]] for name, source in data["external"].items()},
            [folds["count"], folds.get("splits"), folds["external"]],
            [training[key] for key in ("precision", "batch_size", "accumulate", "compile")],
            [training.get(key) for key in ("cached_views", "validate_with_tta")],
        ],
        sort_keys=True,
    )


def _with_probes(plans: Sequence[RunPlan]) -> list[RunPlan]:
    """Times the networks of runs whose pace is not known from earlier trainings, each network once."""
    unknown = {
        _network(plan.run.config, plan.images): (plan.run.config, plan.images)
        for plan in plans
        if plan.pace is None and plan.images is not None and plan.open_folds and plan.run.config.svm is None
    }
    paces = {}
    for key, (config, images) in tqdm(unknown.items(), desc="timing networks", leave=False, disable=not unknown):
        seconds, device = seconds_per_image(config, images.classes, images.modalities)
        what = f"{config.model.backbone} at {config.image.side} pixels"
        paces[key] = Pace(
            seconds, None, f"times probed: {what} on {device}, the network alone, {1 / seconds:.3g} images/s"
        )
    return [
        replace(
            plan,
            pace=plan.pace
            or (
                paces.get(_network(plan.run.config, plan.images))
                if plan.images and plan.run.config.svm is None
                else None
            ),
        )
        for plan in plans
    ]


def _network(config: Config, images: Images) -> str:
    """Returns what decides how long a network's step takes."""
    training = config.training
    return json.dumps(
        [
            config.model.model_dump_json(),
            config.image.side,
            images.modalities,
            training.batch_size,
            training.accumulate,
            training.precision,
        ]
    )
