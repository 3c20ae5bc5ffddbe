"""The table of a study: Markdown for people, which also reads well in a terminal, and CSV for programs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from leukofold.files import write_text
from leukofold.metrics import METRICS
from leukofold.runs import RUNS
from leukofold.studies.grid import RESULT_COLUMNS
from leukofold.studies.results import Comparison, Results, Row, Value

NOTHING = "-"
TITLES = {"single": "no TTA", "tta": "TTA"}


def write_tables(results: Results, root: Path = RUNS) -> tuple[Path, Path]:
    """Writes ``table.md`` and ``table.csv`` into the study's folder, each in one step.

    Args:
        results: What the study found.
        root: Where runs lie.

    Returns:
        The two files.
    """
    folder = root / results.grid.name
    write_text(folder / "table.md", to_markdown(results))
    write_text(folder / "table.csv", to_csv(results))
    return folder / "table.md", folder / "table.csv"


def to_csv(results: Results) -> str:
    """Writes one row per levels, view and metric; fields without value are empty."""
    records = []
    for row in results.rows:
        for metric in results.grid.study.metrics:
            value = row.values.get(metric)
            records.append(
                {
                    **row.levels,
                    "views": row.view,
                    "metric": metric,
                    **({"value": value.value, "low": value.low, "high": value.high, "std": value.std} if value else {}),
                    "published": results.grid.published(row.levels, row.view, metric),
                    "folds": f"{row.folds}/{row.folds_wanted}",
                    "images": row.images,
                    "split_by": row.split_by,
                    "rendered": {True: "yes", False: "no", None: ""}[row.rendered],
                    "runs": " ".join(row.runs),
                }
            )
    columns = [*results.grid.study.axes, *RESULT_COLUMNS]
    return pd.DataFrame(records, columns=columns).to_csv(index=False, lineterminator="\n")


def to_markdown(results: Results) -> str:
    """Writes title, note, warnings, the table, and a table for each comparison."""
    study = results.grid.study
    parts = [f"# {study.title or results.grid.name}"]
    parts += [study.note.strip()] if study.note.strip() else []
    parts += [*_warnings(results.rows), _main_table(results), _legend(results)]
    for axis in study.compare:
        found = [comparison for comparison in results.comparisons if comparison.axis == axis]
        parts += [_comparison_table(found, METRICS[study.metrics[0]])] if found else []
    parts += ["\n".join(f"- {remark}" for remark in results.remarks)] if results.remarks else []
    return "\n\n".join(parts) + "\n"


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Says once what is wrong with rows of rendered images and of image-level folds."""
    found = []
    if any(row.rendered for row in rows):
        found.append("RENDERED images: these numbers say nothing about patients (rows marked rendered).")
    if any(row.values and row.split_by == "image" for row in rows):
        found.append("Image-level folds: patients cross, scores too high (rows split by image).")
    return found


def _main_table(results: Results) -> str:
    """Writes the rows, the published value beside each of ours."""
    grid = results.grid
    published = [metric for metric in grid.study.metrics if any(metric in row for row in grid.study.published)]
    headers = [*grid.study.axes, "views"]
    for metric in grid.study.metrics:
        headers += [METRICS[metric], *(["paper"] if metric in published else [])]
    headers += ["folds", "images", "split", "rendered"]
    body = []
    for row in results.rows:
        cells = [*row.levels.values(), TITLES[row.view]]
        for metric in grid.study.metrics:
            value = row.values.get(metric)
            cells.append(_written(value) if value else "not run" if metric == grid.study.metrics[0] else NOTHING)
            cells += [_or_nothing(grid.published(row.levels, row.view, metric))] if metric in published else []
        partial = " partial" if row.folds and not row.complete else ""
        cells += [f"{row.folds}/{row.folds_wanted}{partial}", str(row.images), row.split_by]
        cells.append({True: "yes", False: "no", None: NOTHING}[row.rendered])
        body.append(cells)
    return _table(headers, body, len(grid.study.axes) + 1)


def _legend(results: Results) -> str:
    """Says what the numbers are."""
    study = results.grid.study
    lines = ["Out of fold, the competition's images only."]
    if len(study.seeds) > 1:
        lines.append(f"Mean ± standard deviation over {len(study.seeds)} seeds.")
    else:
        lines.append(
            f"{METRICS[study.metrics[0]]} with its 95 % interval (bootstrap over patients, or over images without)."
        )
    if study.ensemble:
        lines.append(f"Ensemble: mean of the logits over {study.ensemble}.")
    if study.published:
        lines.append("Paper: as published.")
    return " ".join(lines)


def _comparison_table(comparisons: Sequence[Comparison], metric: str) -> str:
    """Writes what the levels of an axis gain over the first one."""
    first = comparisons[0]
    others = [axis for axis in first.levels if axis != first.axis]
    headers = [*others, "views", first.axis, metric, first.reference, "difference"]
    body = [
        [
            *(comparison.levels[axis] for axis in others),
            TITLES[comparison.view],
            comparison.levels[comparison.axis],
            f"{comparison.value:.4f}",
            f"{comparison.reference_value:.4f}",
            _written(comparison.difference, "+.4f"),
        ]
        for comparison in comparisons
    ]
    title = f"## {metric} by {first.axis}, each against {first.reference} on the same images (paired)"
    return f"{title}\n\n{_table(headers, body, len(others) + 2)}"


def _written(value: Value, form: str = ".4f") -> str:
    """Writes a value with its uncertainty."""
    text = f"{value.value:{form}}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:{form}}, {value.high:{form}}]"
    return text if value.std is None else f"{text} ± {value.std:.4f}"


def _or_nothing(value: float | None) -> str:
    """Writes a published value, as published, in four digits."""
    return NOTHING if value is None else f"{value:.4f}"


def _table(headers: Sequence[str], body: Sequence[Sequence[str]], names: int) -> str:
    """Writes a Markdown table with aligned columns; the first ``names`` to the left, numbers to the right."""
    widths = [max(3, *(len(cells[i]) for cells in (headers, *body))) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            f"{cell:<{width}}" if i < names else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * width}" if i < names else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)]
    return "\n".join([line(headers), line(rule), *(line(cells) for cells in body)])
