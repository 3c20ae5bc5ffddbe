"""Trackers beside accelerate's own: the CSV that every fold keeps."""

from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from leukofold.runs import FoldFolder


class CsvTracker(GeneralTracker):
    """Keeps ``history.csv``, one row per epoch, whole after every row.

    Args:
        folder: The fold's folder.
        rows: Rows of the epochs before a resume.
    """

    name = "csv"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, folder: FoldFolder, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self.folder = folder
        self.rows = rows

    @property
    def tracker(self) -> list[dict[str, Any]]:
        """The rows so far."""
        return self.rows

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Does nothing: the configuration stands in the fold's metadata.json."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None:
        """Adds one epoch.

        Args:
            values: Column -> value.
            step: The epoch.
            **kwargs: Arguments for other trackers.
        """
        self.rows.append({"epoch": step, **values})
        self.folder.write_history(self.rows)
