"""Label issues fed back: images that training leaves out, or learns under another label.

Both lists are CSV files such as ``scripts/label_issues.py`` writes, edited or not. They change what is trained on and
nothing else: every image keeps its fold and is scored under the label that was given, so that runs with and without
them compare, and no score rises because difficult images have gone.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from leukofold.cells import UNLABELLED
from leukofold.config import DataConfig
from leukofold.errors import UserError, name_some


def read_corrections(config: DataConfig, labelled: pd.DataFrame, class_names: tuple[str, ...]) -> np.ndarray:
    """Reads the lists that the configuration names.

    Args:
        config: ``drop_issues`` and ``relabel_issues``.
        labelled: n labelled rows of a ``CellTable``.
        class_names: K names.

    Returns:
        n class indices to train on, ``UNLABELLED`` where an image is left out.

    Raises:
        UserError: A list cannot be read, was made for other labels or other images, names a class that is none, or
            both lists name an image.
    """
    label = labelled.label.to_numpy().copy()
    drop = _rows(config.drop_issues, "drop_issues", labelled, class_names)
    relabel = _rows(config.relabel_issues, "relabel_issues", labelled, class_names)
    both = sorted(set(drop.image_id) & set(relabel.image_id))
    if both:
        raise UserError(
            f"data.drop_issues and data.relabel_issues both name {len(both)} images: {name_some(both)}; "
            "keep each in one of them"
        )
    label[drop.row] = UNLABELLED
    if len(relabel):
        unknown = sorted(set(relabel.suggested_label) - set(class_names))
        if unknown:
            raise UserError(
                f"{config.relabel_issues}: suggested_label {name_some(unknown)} is no class; "
                f"known ones are {' '.join(class_names)}"
            )
        label[relabel.row] = [class_names.index(name) for name in relabel.suggested_label]
    return label


def _rows(path: Path | None, key: str, labelled: pd.DataFrame, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Reads one list, with the ``row`` of each image among the labelled ones."""
    columns = ["image_id", "given_label"] + (["suggested_label"] if key == "relabel_issues" else [])
    if path is None:
        return pd.DataFrame({column: pd.Series(dtype=str) for column in columns} | {"row": pd.Series(dtype=np.int64)})
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"data.{key}: {path}: no such file; scripts/label_issues.py writes such lists") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"data.{key}: {path}: not a readable CSV: {error}") from None
    lacking = [column for column in columns if column not in found.columns]
    if lacking:
        raise UserError(f"data.{key}: {path}: no column {name_some(lacking)}, only {', '.join(found.columns)}")
    if "source" in found.columns:  # a list of a run with more data serves one with less
        found = found[found.source.isin(labelled.source)]
    twice = sorted(found.image_id[found.image_id.duplicated()])
    if twice:
        raise UserError(
            f"data.{key}: {path}: {len(twice)} images stand twice: {name_some(twice)}; keep one row of each"
        )
    row = pd.Index(labelled.image_id).get_indexer(pd.Index(found.image_id))
    absent = found.image_id[row < 0].tolist()
    if absent:
        raise UserError(
            f"data.{key}: {path}: {len(absent)} images are not among the labelled ones: {name_some(absent)}; "
            "write the list for this data"
        )
    given = np.array(class_names, dtype=str)[labelled.label.to_numpy()[row]]
    other = found.image_id[given != found.given_label.to_numpy(dtype=str)].tolist()
    if other:
        raise UserError(
            f"data.{key}: {path}: {len(other)} images are labelled otherwise in the data: {name_some(other)}; "
            "write the list for this data"
        )
    return found[columns].assign(row=row).reset_index(drop=True)
