"""A finished run meets its data again: the cells behind its rows, their images, and its networks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from leukofold.blending.loading import LoadedRun
from leukofold.cells import CellTable
from leukofold.competitions import Competition, get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import read_cells
from leukofold.images.cellimages import CellImages, open_images
from leukofold.images.preparing import Preparation
from leukofold.models.classifier import Classifier
from leukofold.models.trained import load_network, trained_config

if TYPE_CHECKING:
    from leukofold.handcrafted.classifier import HandcraftedClassifier


@dataclass(frozen=True)
class ReopenedRun:
    """A run with the data that it was trained on.

    Attributes:
        run: The run.
        config: Its configuration.
        competition: Whose files they are.
        table: All cells of the input.
        cells: n rows of a ``CellTable``, those of ``run.oof`` in its order; ``group`` is the run's own, after merging.
    """

    run: LoadedRun
    config: Config
    competition: Competition
    table: CellTable
    cells: pd.DataFrame

    @property
    def has_patients(self) -> bool:
        """Whether the data name patients."""
        return self.competition.has_patients and self.table.knows_patients

    @property
    def seen(self) -> tuple[str, ...]:
        """The images of a cell that the run's networks see; none where a cell has one."""
        return tuple(self.run.metadata.get("modalities", ()))  # older runs have none

    def images(self) -> CellImages:
        """Opens the prepared images, as training left them.

        Raises:
            UserError: They have to be prepared again, and the disk has no room or an image cannot be decoded.
        """
        rows = pd.concat([self.table.labelled, self.table.test])  # what training's cache holds: the same key
        preparation = Preparation(self.config.image, self.competition.preprocess)
        return open_images(rows, preparation, self.competition.name, self.config.data)

    def network(self, fold: int, device: torch.device) -> "Classifier | HandcraftedClassifier":
        """Loads the network that has not seen a fold's images."""
        return load_network(self.config, self.run.folder.fold(fold), len(self.run.oof.class_names), device)


def reopen(run: LoadedRun) -> ReopenedRun:
    """Finds the cells behind a run's out-of-fold rows.

    Args:
        run: The run.

    Returns:
        The run with its data.

    Raises:
        UserError: The input is not there, or has other images, labels or sizes of files than the run was trained on.
    """
    config = trained_config(run.folder, run.metadata)
    table = read_cells(config)
    where = f"{run.name}: {config.data.root}"
    if list(table.class_names) != list(run.oof.class_names):
        raise UserError(f"{where} has other classes now than when the run was trained; train it again")
    rows = pd.Index(table.frame.image_id).get_indexer(pd.Index(run.oof.image_id))
    gone = run.oof.image_id[rows < 0]
    if len(gone):
        raise UserError(
            f"{where} lacks {len(gone)} images that the run was trained on, {gone[0]} first; "
            "put them back, or train again"
        )
    cells = table.frame.iloc[rows].reset_index(drop=True)
    changed = run.oof.image_id[cells.label.to_numpy() != run.oof.label]
    if len(changed):
        raise UserError(
            f"{where} labels {len(changed)} images otherwise than when the run was trained, {changed[0]} first; "
            "train it again"
        )
    if run.metadata.get("input_fingerprint") not in (None, table.fingerprint()):  # older runs do not have it
        raise UserError(
            f"{where} has other files now than when the run was trained, of the same names and labels; train it again"
        )
    return ReopenedRun(run, config, get_competition(config.data.competition), table, cells.assign(group=run.oof.group))
