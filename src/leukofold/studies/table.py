"""The table of a study: Markdown for people, which also reads well in a terminal, and CSV for programs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from leukofold.files import write_text
from leukofold.runs import RUNS
from leukofold.studies.composition import Composition
from leukofold.studies.grid import Published
from leukofold.studies.results import Best, Comparison, Place, Results, Row, Value
from leukofold.studies.schema import COSTS, OF_A_CLASS, RESULT_COLUMNS, VIEWS
from leukofold.studies.scoring import labelled_logits

NOTHING = "-"
TITLES = {"single": "no TTA", "tta": "TTA", "folds": "out of fold", "holdout": "hold-out"}
COST_TITLES = {"multiply_adds": "M multiply-adds", "parameters": "M parameters"}
DIGITS = {"multiply_adds": 2, "parameters": 3}
MEASURES = {"precision": "precision", "recall": "recall", "f1": "F1"}
MARK = "*"  # at a level that has a note


def title_of(name: str) -> str:
    """Names a view, or what is scored on: splits and target domains are called by their own names."""
    return TITLES.get(name, name)


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
    """Writes one row per levels, what is scored on, view and metric; fields without value are empty."""
    records = []
    for row in results.rows:
        for metric in results.grid.study.metrics:
            value, published = row.values.get(metric), _published(results, row.place, metric)
            records.append(
                {
                    **row.place.levels,
                    "on": row.place.on,
                    "views": row.place.view,
                    "metric": metric,
                    **(_columns(value) if value else {}),
                    "published": published.mean,
                    "published_std": published.std,
                    "published_ci": published.ci,
                    "published_min": published.min,
                    "published_max": published.max,
                    **(vars(cost) if (cost := results.costs.get(tuple(row.place.levels.values()))) else {}),
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
    """Writes title, note, warnings, the table, a table for each comparison, and the data counted."""
    study = results.grid.study
    parts = [f"# {study.title or results.grid.name}"]
    parts += [study.note.strip()] if study.note.strip() else []
    parts += [*_warnings(results.rows), _main_table(results), _legend(results)]
    for axis in study.compare:
        found = [comparison for comparison in results.comparisons if comparison.axis == axis]
        parts += [_comparison_table(results, found)] if found else []
    parts += [_class_table(results, results.best)] if study.look_at and results.best else []
    parts += [_composition_table(results.composition)] if results.composition else []
    parts += ["\n".join(f"- {remark}" for remark in results.remarks)] if results.remarks else []
    return "\n\n".join(parts) + "\n"


def _columns(value: Value) -> dict[str, float | None]:
    """Returns a value's columns of the CSV."""
    return {
        "value": value.value,
        "low": value.low,
        "high": value.high,
        "std": value.std,
        "min": value.lowest,
        "max": value.highest,
    }


def _published(results: Results, place: Place, metric: str) -> Published:
    """Returns the published value of a row."""
    return results.grid.published(place.levels, place.on, place.view, metric)


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Says once what is wrong with rows of rendered images and of image-level folds."""
    found = []
    if any(row.rendered for row in rows):
        found.append("RENDERED images: these numbers say nothing about patients (rows marked rendered).")
    if any(row.values and row.split_by == "image" for row in rows):
        found.append("Image-level folds: patients cross, scores too high (rows split by image).")
    if any(row.values and row.optimistic for row in rows):
        found.append("OPTIMISTIC: the epochs were chosen on the images that are scored (rows split by split).")
    return found


def _main_table(results: Results) -> str:
    """Writes the rows, the published value beside each of ours."""
    study, titles = results.grid.study, results.grid.titles
    published = [metric for metric in study.metrics if any(metric in row for row in study.published)]
    names = [*study.axes, *_scored_on(results, "scored on"), "views"]
    headers = list(names)
    for metric in study.metrics:
        headers += [titles[metric], *(["paper"] if metric in published else [])]
    costs = {name: any(name in row for row in study.published) for name in (COSTS if study.complexity else ())}
    for name, told in costs.items():
        headers += [COST_TITLES[name], *(["paper"] if told else [])]
    headers += ["folds", "images", "split", "rendered"]
    body = []
    for row in results.rows:
        place = row.place
        cells = [*_marked(results, place), *_scored_on(results, title_of(place.on)), TITLES[place.view]]
        for metric in study.metrics:
            value = row.values.get(metric)
            absent = "not run" if row.folds_wanted else "no hold-out"
            cells.append(_written(value) if value else absent if metric == study.metrics[0] else NOTHING)
            cells += [_as_published(_published(results, place, metric))] if metric in published else []
        cost = results.costs.get(tuple(place.levels.values()))
        for name, told in costs.items():
            cells.append(NOTHING if cost is None else f"{getattr(cost, name) / 1e6:.{DIGITS[name]}f}")
            mean = _published(results, place, name).mean
            cells += [NOTHING if mean is None else f"{mean:.{DIGITS[name]}f}"] if told else []
        partial = " partial" if row.folds and not row.complete else ""
        cells += [f"{row.folds}/{row.folds_wanted}{partial}", str(row.images), row.split_by]
        cells.append({True: "yes", False: "no", None: NOTHING}[row.rendered])
        body.append(cells)
    return _table(headers, body, len(names))


def _marked(results: Results, place: Place) -> list[str]:
    """Returns a row's levels, with a mark at those that have a note."""
    return [
        level + (MARK if level in levels and levels[level].note else "")
        for level, levels in zip(place.levels.values(), results.grid.study.axes.values(), strict=True)
    ]


def _scored_on(results: Results, cell: str) -> list[str]:
    """Returns the cell of the column that only studies of a hold-out have."""
    return [] if results.grid.study.on == ("folds",) else [cell]


def _legend(results: Results) -> str:
    """Says what the numbers are."""
    study = results.grid.study
    lines = []
    if "folds" in study.on:
        lines.append("Out of fold, the competition's images only.")
    out_of_fold = {name for run in results.grid.runs for name in run.config.folds.splits}
    own = [on for on in study.on if on in out_of_fold]
    if own:
        lines.append(f"{', '.join(own)}: scored out of fold.")
    held_out = [on for on in study.on if on != "folds" and on not in out_of_fold]
    if held_out:
        networks = "each fold's network alone" if study.over == "folds" else "the mean logits of the folds' networks"
        what = "Hold-out" if held_out == ["holdout"] else f"{', '.join(map(title_of, held_out))}"
        lines.append(f"{what}: images that no fold trains on or selects by, scored by {networks}.")
    spread = "standard deviation" if study.spread == "deviation" else "half the 95 % interval (Student's t)"
    if len(study.seeds) > 1:
        each = ", of each seed's mean over its folds" if study.over == "folds" else ""
        lines.append(f"Mean ± {spread} over {len(study.seeds)} seeds (lowest to highest){each}.")
    elif study.over == "folds":
        lines.append(f"Mean ± {spread} over the folds, each scored alone (lowest to highest).")
    else:
        lines.append(
            f"{results.grid.titles[study.metrics[0]]} with its 95 % interval (bootstrap over patients, or over images "
            "without)."
        )
    if study.ensemble:
        averaged = study.ensemble
        levels = f" ({', '.join(averaged.levels)})" if averaged.levels else ""
        lines.append(f"{averaged.name.capitalize()}: mean of the {averaged.mean} over {averaged.axis}{levels}.")
    if study.complexity:
        lines.append("Multiply-adds of one cell without TTA, and parameters, in millions.")
    if study.published:
        lines.append("Paper: as published.")
    notes = [
        f"{MARK} {name}: {level.note}" for levels in study.axes.values() for name, level in levels.items() if level.note
    ]
    return "\n\n".join([" ".join(lines), *notes])


def _comparison_table(results: Results, comparisons: Sequence[Comparison]) -> str:
    """Writes what the levels of an axis, or the views, gain over the first one."""
    axis, metric = comparisons[0].axis, results.grid.titles[results.grid.study.metrics[0]]
    reference = TITLES[comparisons[0].reference] if axis == VIEWS else comparisons[0].reference
    others = [other for other in results.grid.study.axes if other != axis]
    names = [*others, *_scored_on(results, "scored on"), *([] if axis == VIEWS else ["views"]), axis]
    tested = any(comparison.p is not None for comparison in comparisons)
    headers = [*names, metric, reference, "difference", *(["p"] if tested else [])]
    body = []
    for found in comparisons:
        place = found.place
        view = TITLES[place.view]
        cells = [*(place.levels[other] for other in others), *_scored_on(results, title_of(place.on)), view]
        cells += [] if axis == VIEWS else [place.levels[axis]]
        cells += [f"{found.value:.4f}", f"{found.reference_value:.4f}", _written(found.difference, "+.4f")]
        body.append([*cells, *([_probability(found.p)] if tested else [])])
    paired = all(comparison.paired for comparison in comparisons)
    images = "on the same images (paired)" if paired else "(paired where there is an interval or a deviation)"
    title = f"## {metric} by {axis}, each against {reference} {images}"
    meaning = (
        "\n\np: one-sided Mann-Whitney U test over the seeds (Prellberg and Kramer 2019, section 4.4): how often "
        f"chance alone puts {reference} so far ahead. Small: {reference} is better."
    )
    return f"{title}\n\n{_table(headers, body, len(names))}{meaning if tested else ''}"


def _class_table(results: Results, best: Best) -> str:
    """Writes precision, recall and F1 of every class of the run that is looked at, the published ones beside them."""
    assert results.grid.study.look_at is not None
    published = results.grid.study.look_at.published
    labels, logits = labelled_logits(best.scored.pooled, best.place.view)
    classes = range(logits.shape[1])
    found = precision_recall_fscore_support(labels, logits.argmax(axis=1), labels=classes, zero_division=0)
    headers = ["class", "images"]
    for measure in OF_A_CLASS:
        headers += [MEASURES[measure], *(["paper"] if published else [])]
    body = []
    for k, name in enumerate(best.scored.pooled.class_names):
        cells = [name, str(found[3][k])]
        for measure, values in zip(OF_A_CLASS, found, strict=False):
            own = published.get(name, {}).get(measure)
            cells.append(f"{values[k]:.4f}" if found[3][k] else NOTHING)
            cells += [NOTHING if own is None else f"{own:.4f}"] if published else []
        body.append(cells)
    metric = results.grid.titles[results.grid.study.metrics[0]]
    title = (
        f"## Classes: {best.run.removeprefix(results.grid.name + '/')}, {title_of(best.place.on)}, {metric} "
        f"{best.value:.4f}, of {best.among} runs the nearest to their mean {best.mean:.4f}"
    )
    return f"{title}\n\n{_table(headers, body, 1)}"


def _composition_table(composition: Composition) -> str:
    """Writes our counts of subjects and images beside the published ones."""
    headers = ["part", "class", "subjects", "paper", "images", "paper"]
    body = [
        [
            count.part,
            count.class_name,
            *(
                NOTHING if number is None else f"{number:,}"
                for number in (count.groups, count.published_groups, count.images, count.published_images)
            ),
        ]
        for count in composition.counts
    ]
    lines = ["Subjects and images, ours as the input has them, the paper's as published.", *composition.remarks]
    return f"## Data\n\n{_table(headers, body, 2)}\n\n{' '.join(lines)}"


def _written(value: Value, form: str = ".4f") -> str:
    """Writes a value with its uncertainty."""
    text = f"{value.value:{form}}"
    half = (value.high - value.low) / 2 if value.low is not None and value.high is not None else None
    if value.std is not None:
        text += f" ± {value.std if half is None else half:.4f} ({value.lowest:{form}} to {value.highest:{form}})"
    elif half is not None:
        text += f" [{value.low:{form}}, {value.high:{form}}]"
    return text


def _as_published(value: Published) -> str:
    """Writes a published value in four digits, in the form of ours."""
    texts = [] if value.mean is None else [f"{value.mean:.4f}"]
    texts += [f"± {spread:.4f}" for spread in (value.std, value.ci) if spread is not None]
    if value.min is not None and value.max is not None:
        texts.append(f"({value.min:.4f} to {value.max:.4f})")
    elif value.min is not None:
        texts.append(f"(from {value.min:.4f})")
    elif value.max is not None:
        texts.append(f"(to {value.max:.4f})")
    return " ".join(texts) or NOTHING


def _probability(p: float | None) -> str:
    """Writes a p value; what four digits do not show is below their last one."""
    if p is None:
        return NOTHING
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


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
