"""The folder that an analysis ends in: lists for programs, a confusion matrix and pages of cells for people."""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.figures.confusion import confusion_figure
from leukofold.figures.style import save_figure
from leukofold.files import write_text
from leukofold.labels.analysis import LabelAnalysis
from leukofold.labels.sheets import issue_sheets, sheet_count

DECIMALS = "%.6g"


def write_analysis(analysis: LabelAnalysis, folder: Path) -> list[Path]:
    """Writes an analysis, in the place of an earlier one.

    Args:
        analysis: The analysis.
        folder: Where to; created if missing. What else lies in it stays.

    Returns:
        The files: ``label_issues.csv`` (the worst first), ``all_images.csv``, ``sources.csv``, ``outliers.csv`` (with
        embeddings) and, if there are issues, ``label_issues_confusion.png`` and ``sheets/*.png``.
    """
    tables = {
        "label_issues.csv": _named(analysis, analysis.issues).drop(columns="is_issue"),
        "all_images.csv": _named(analysis, analysis.images),
        "sources.csv": source_counts(analysis),
    }
    if analysis.outliers is not None:
        tables["outliers.csv"] = _outlier_list(analysis, analysis.outliers)
    _clear(folder)
    for name, table in tables.items():
        write_text(folder / name, table.to_csv(index=False, lineterminator="\n", float_format=DECIMALS))
    return [*(folder / name for name in tables), *(_write_pictures(analysis, folder) if len(analysis.pairs) else [])]


def source_counts(analysis: LabelAnalysis) -> pd.DataFrame:
    """Counts per source: ``source``, ``images``, ``issues`` and ``share`` of its images that are issues."""
    counts = analysis.images.groupby("source", sort=False).is_issue.agg(images="size", issues="sum").reset_index()
    return counts.assign(share=counts.issues / counts.images)


def _clear(folder: Path) -> None:
    """Removes what an earlier analysis may have left that this one might not replace."""
    for old in [*folder.glob("sheets/given_*_suggested_*.png"), folder / "sheets" / "overview.png"]:
        old.unlink(missing_ok=True)
    for name in ("outliers.csv", "label_issues_confusion.png"):
        (folder / name).unlink(missing_ok=True)


def _named(analysis: LabelAnalysis, images: pd.DataFrame) -> pd.DataFrame:
    """Lays rows of ``analysis.images`` out for people: names for class indices, the most wanted columns first."""
    names = np.array(analysis.class_names)
    predicted = [f"predicted_by_{run.name}" for run in analysis.runs]
    named = images.assign(
        given_label=names[images.given],
        suggested_label=names[images.suggested],
        **{column: names[images[column]] for column in predicted},
    )
    columns = ["image_id", "given_label", "suggested_label", "label_quality", "suggested_probability", "agreement"]
    columns += ["is_issue", "source", "group", "fold", "path", *predicted]
    return named[columns]


def _outlier_list(analysis: LabelAnalysis, outliers: pd.DataFrame) -> pd.DataFrame:
    """Lists the furthest outliers first, with what is known of each image."""
    images = analysis.images.iloc[outliers.row.to_numpy(dtype=np.int64)].reset_index(drop=True)
    table = outliers.drop(columns="row").assign(
        near_duplicates=outliers.near_duplicates.map(";".join),
        label=np.array(analysis.class_names)[images.given],
        **images[["source", "group", "fold", "path"]],
    )
    return table.sort_values("outlier_score", kind="stable")


def _write_pictures(analysis: LabelAnalysis, folder: Path) -> list[Path]:
    """Draws the confusion matrix of the issues and the pages of cells."""
    classes = len(analysis.class_names)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (analysis.issues.given, analysis.issues.suggested), 1)
    sources = source_counts(analysis)
    shares = ", ".join(f"{row.issues} of {row.source}" for row in sources.itertuples())
    figure = confusion_figure(
        counts,
        analysis.class_names,
        analysis.competition.lineages,
        f"{analysis.title}: {counts.sum()} label issues" + (f" ({shares})" if len(sources) > 1 else ""),
        columns="suggested label",
    )
    paths = [folder / "label_issues_confusion.png"]
    save_figure(paths[0], figure)
    pages = issue_sheets(analysis)
    for name, page in tqdm(pages, total=sheet_count(analysis), desc="drawing sheets", unit="page", leave=False):
        paths.append(folder / "sheets" / f"{name}.png")
        save_figure(paths[-1], page)
    return paths
