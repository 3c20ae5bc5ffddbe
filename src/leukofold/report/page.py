"""The page: figures, numbers and origin of a report, set into one HTML file that needs nothing else."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from tqdm import tqdm

from leukofold.blending.combining import Blend, blend_runs
from leukofold.blending.loading import LoadedRun
from leukofold.figures.style import png_bytes
from leukofold.files import replacing, write_json, write_text
from leukofold.gradcam import UnknownBackboneError
from leukofold.labels.analysis import LabelAnalysis, analyse_labels
from leukofold.labels.sheets import issue_sheets
from leukofold.reopening import ReopenedRun, reopen
from leukofold.report.cells import Cells, draw_errors, draw_heat
from leukofold.report.charts import draw_charts
from leukofold.report.maps import draw_maps, map_rows
from leukofold.report.numbers import Numbers, collect_numbers, metric_titles


@dataclass(frozen=True)
class Picture:
    """A figure as the page and the folder hold it.

    Attributes:
        png: The file.
        width: Inches on paper.
    """

    png: bytes
    width: float

    @property
    def uri(self) -> str:
        """The file as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


OPTIONAL = (
    "groups",
    "surest_errors",
    "hardest_classes",
    "label_issues",
    "map_classes",
    "map_sources",
    "map_splits",
    "heat_right",
    "heat_wrong",
)  # figures that not every report has


def write_report(runs: Sequence[LoadedRun], folder: Path) -> tuple[Numbers, list[str]]:
    """Writes the report of one or several runs.

    Args:
        runs: At least one, all of the same competition, data, classes, split and folds.
        folder: Gets ``report.html``, the same figures as ``figures/*.png``, and the numbers as ``metrics.json``.

    Returns:
        The numbers, and what could not be drawn.

    Raises:
        UserError: Runs do not belong together, or their input or weights are not there any more.
    """
    blend = blend_runs(runs)
    reopened = [reopen(run) for run in runs]
    bar = tqdm(total=5, desc="scores", leave=False)

    def began(what: str) -> None:
        bar.update()
        bar.set_description(what)

    with bar:
        numbers = collect_numbers(blend, reopened)
        began("labels")
        analysis = analyse_labels(runs, with_embeddings=False)
        pictures: dict[str, Picture] = {}
        notes: dict[str, str] = {}
        began("charts and cells")
        cells = Cells(blend, reopened[0])
        _add(pictures, draw_charts(numbers, blend.oof.class_names, reopened[0].competition.lineages))
        _add(pictures, draw_errors(cells, numbers))
        _add(pictures, _issue_overview(analysis))
        began("map")
        _add(pictures, draw_maps(reopened[0]))
        began("Grad-CAM")
        try:
            _add(pictures, draw_heat(cells, reopened))
        except UnknownBackboneError as error:  # the rest of the report stands
            notes["heat"] = str(error)
    for name in set(OPTIONAL) - set(pictures):  # of an earlier report
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    for name, picture in pictures.items():
        with replacing(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(picture.png)
    write_json(folder / "metrics.json", {**_origin(blend), **numbers.as_json()})
    page = render_page(
        facts=_facts(blend, reopened, analysis),
        numbers=numbers,
        titles=metric_titles(len(blend.oof.class_names)),
        pictures=pictures,
        notes=notes,
    )
    write_text(folder / "report.html", page)
    return numbers, list(notes.values())


def render_page(**context: Any) -> str:
    """Sets the page; whatever is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, count=_count, seconds=_seconds, yaml=_yaml)
    return environment.get_template("page.html").render(**context)


def _add(pictures: dict[str, Picture], figures: Iterator[tuple[str, Figure]]) -> None:
    """Turns figures into pictures one by one, so that no more than one is kept."""
    for name, figure in figures:
        pictures[name] = Picture(png_bytes(figure), float(figure.get_figwidth()))


def _issue_overview(analysis: LabelAnalysis) -> Iterator[tuple[str, Figure]]:
    """Draws the first page of the label analysis, if there is an issue."""
    if analysis.pairs:
        yield "label_issues", next(issue_sheets(analysis))[1]


def _origin(blend: Blend) -> dict[str, Any]:
    """Tells what the numbers are of."""
    kept = ("competition", "rendered", "split_by", "class_names", "data_fingerprint")
    return {
        **{key: blend.metadata[key] for key in kept},
        "images": int((~blend.oof.is_external).sum()),
        "trained_folds": sorted(set(blend.folds.tolist())),
        "missing_folds": blend.runs[0].missing_folds,
        "runs": [
            {"name": run.name, "config_digest": run.metadata["config_digest"], "folds": run.provenance}
            for run in blend.runs
        ],
    }


def _facts(blend: Blend, reopened: Sequence[ReopenedRun], analysis: LabelAnalysis) -> dict[str, Any]:
    """Gathers what the page tells besides numbers and pictures."""
    first = reopened[0]
    split = first.run.split.set_index("image_id")
    labelled = first.table.labelled
    labelled = labelled[labelled.image_id.isin(split.index)]
    own = labelled.image_id[~labelled.is_external]
    return {
        **_origin(blend),
        "title": first.competition.title,
        "has_patients": first.has_patients,
        "debug": bool(blend.metadata["debug"]),
        "leaking": [run.name for run in blend.runs if run.metadata.get("label_lists") == "all folds"],
        "input": blend.metadata["input"],
        "groups": len(set(blend.oof.group[~blend.oof.is_external].tolist())),
        "labelled": len(own),
        "labelled_groups": split.group[own].nunique(),
        "external": labelled[labelled.is_external].source.value_counts().to_dict(),
        "members": [
            {"name": each.run.name, "config": each.config.resolved(), "made": _made(each.run),
             "digest": each.run.metadata["config_digest"]}
            for each in reopened
        ],
        "issues": len(analysis.issues),
        "judged": len(analysis.images),
        "pairs": [
            (blend.oof.class_names[given], blend.oof.class_names[suggested]) for given, suggested in analysis.pairs[:3]
        ],
        "map_cells": len(map_rows(first)),
        "map_fold": int(first.run.folds.min()),
    }  # fmt: skip


def _made(run: LoadedRun) -> list[dict[str, Any]]:
    """Tells what each fold was trained with; folds of the same commit and libraries together."""
    folds_of: dict[tuple[str, str], list[int]] = {}
    for fold, made in run.provenance.items():
        versions = ", ".join(f"{library} {version}" for library, version in made["versions"].items())
        commit, changed, _ = made["commit"].partition("+")
        folds_of.setdefault((commit[:12] + (", changed" if changed else ""), versions), []).append(fold)
    return [{"folds": folds, "commit": commit, "versions": versions} for (commit, versions), folds in folds_of.items()]


def _number(value: float | None, digits: int = 3) -> str:
    """Writes a share with so many digits; a dash where it is undefined."""
    return "\u2013" if value is None or value != value else f"{value:.{digits}f}"


def _count(value: float) -> str:
    """Writes a number of things, thousands apart."""
    return f"{value:,.0f}"


def _seconds(value: float) -> str:
    """Writes a duration in the unit that people would use."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} s"


def _yaml(value: Mapping[str, Any]) -> str:
    """Writes a configuration as its file would have it."""
    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))
