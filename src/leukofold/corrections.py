"""Label issues fed back: images that training leaves out, or learns under another label.

Both lists are CSV files such as ``scripts/label_issues.py`` writes, edited or not. They change what is trained on and
nothing else: every image keeps its fold and is scored under the label that was given, so no score rises because
difficult images have gone.

What a list says of one fold's images comes from networks that were trained on the labels of the others. So a list of
all folds carries the labels of the fold held out into its training, and the score comes out too high: on labels that
are pure noise a third right becomes a half and more (docs/lab-notes.md). Submissions do not suffer, comparisons do.
They need a list per held-out fold, made of a run that left that fold out: ``{fold}`` in the path.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from leukofold.cells import UNLABELLED
from leukofold.config import DataConfig
from leukofold.errors import UserError, name_some
from leukofold.folds import HOLDOUT
from leukofold.lists import read_list

FOLD = "{fold}"  # in a path: the fold held out
LEAKING_LISTS = "lists of label issues that know the labels held out: the scores are too high"


def read_corrections(
    config: DataConfig, labelled: pd.DataFrame, class_names: tuple[str, ...], folds: np.ndarray, held_out: Sequence[int]
) -> dict[int, np.ndarray]:
    """Reads the lists that the configuration names.

    Args:
        config: ``drop_issues`` and ``relabel_issues``.
        labelled: n labelled rows of a ``CellTable``.
        class_names: K names.
        folds: n fold numbers.
        held_out: The folds that are held out in turn.

    Returns:
        For each of them n class indices to train on, ``UNLABELLED`` where an image is left out.

    Raises:
        UserError: A list cannot be read, was made for other labels or other images, names a class that is none, both
            lists name an image, nothing is left to train on, or a list of its own for a fold names its images.
    """
    found = {}
    for fold in held_out:
        found[fold] = label = _training_label(config, fold, labelled, class_names, folds)
        if not (label[folds != fold] != UNLABELLED).any():
            raise UserError(f"data.drop_issues: {config.drop_issues}: leaves nothing to train on; shorten the list")
    return found


def made_with(config: DataConfig) -> str | None:
    """Tells what lists of label issues were made with.

    Returns:
        "other folds": each knows nothing of the labels held out; "all folds": it does, and scores come out too high;
        None: no list.
    """
    paths = [str(path) for path in (config.drop_issues, config.relabel_issues) if path is not None]
    if not paths:
        return None
    return "other folds" if all(FOLD in path for path in paths) else "all folds"


def _training_label(
    config: DataConfig, fold: int, labelled: pd.DataFrame, class_names: tuple[str, ...], folds: np.ndarray
) -> np.ndarray:
    """Returns n class indices to train on while a fold is held out."""
    label: np.ndarray = labelled.label.to_numpy().copy()
    drop = _rows(config.drop_issues, "drop_issues", fold, labelled, class_names, folds)
    relabel = _rows(config.relabel_issues, "relabel_issues", fold, labelled, class_names, folds)
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


def _rows(
    template: Path | None,
    key: str,
    fold: int,
    labelled: pd.DataFrame,
    class_names: tuple[str, ...],
    folds: np.ndarray,
) -> pd.DataFrame:
    """Reads one list, with the ``row`` of each image among the labelled ones."""
    columns = ["image_id", "given_label"] + (["suggested_label"] if key == "relabel_issues" else [])
    if template is None:
        return pd.DataFrame({column: pd.Series(dtype=str) for column in columns} | {"row": pd.Series(dtype=np.int64)})
    path = Path(str(template).replace(FOLD, str(fold)))
    found = _read(path, key, columns, labelled)
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
    seen = found.image_id[np.isin(folds[row], [fold, HOLDOUT])].tolist()
    if path != template and seen:
        raise UserError(
            f"data.{key}: {path}: {len(seen)} images are of fold {fold} itself, or of the hold-out: {name_some(seen)}; "
            f"make the list of a run with folds.left_out={fold}"
        )
    return found[columns].assign(row=row).reset_index(drop=True)


def _read(path: Path, key: str, columns: Sequence[str], labelled: pd.DataFrame) -> pd.DataFrame:
    """Reads the issues of a file that are of the sources trained on."""
    if not path.exists():
        raise UserError(f"data.{key}: {path}: no such file; scripts/label_issues.py writes such lists")
    try:
        found = read_list(path, columns, ("is_issue", "source"))
    except UserError as error:
        raise UserError(f"data.{key}: {error}") from None
    if "is_issue" in found.columns:  # all_images.csv
        found = found[found.is_issue.str.lower() == "true"]
    if "source" in found.columns:  # a list of a run with more data serves one with less
        known = found.source.isin(labelled.source)
        if len(found) and not known.any():
            raise UserError(
                f"data.{key}: {path}: lists images of {name_some(sorted(set(found.source)))}, none of which is trained "
                "on here; write the list for this data"
            )
        found = found[known]
    return found
