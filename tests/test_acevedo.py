"""Acevedo-20 as a data set to train and score on by itself, and what has no leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.external import read_source
from leukofold.metrics import METRICS
from leukofold.preparation import describe, inspect_input
from leukofold.rendering import RenderSpec, render

if TYPE_CHECKING:
    from tests.conftest import Commands

COMPETITION = get_competition("acevedo")
NINE = ("BA", "BNE", "EO", "LY", "MMY", "MO", "MY", "PMY", "SNE")
NO_LEADERBOARD = "Acevedo-20 has no leaderboard: there is no submission to write, check or upload"
JPEG = bytes(cv2.imencode(".jpg", np.full((12, 10, 3), 127, np.uint8))[1])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered folder, nested as the download's archive may be; read only."""
    root = tmp_path_factory.mktemp("rendered") / "acevedo"
    render("acevedo", root, RenderSpec(images=90, seed=2), workers=1, progress=False)
    return root


def test_the_nine_classes_and_the_metric() -> None:
    assert COMPETITION.class_names == NINE
    assert COMPETITION.metric == "macro_f1"
    assert COMPETITION.metric in METRICS
    assert COMPETITION.published_counts == {
        "acevedo": {
            "BA": 1218, "BNE": 1633, "EO": 3117, "LY": 1214, "MMY": 1015, "MO": 1420, "MY": 1137, "PMY": 592,
            "SNE": 1646,
        }
    }  # fmt: skip


def test_every_image_of_the_nine_classes_is_scored_and_its_own_group(rendered: Path) -> None:
    table = COMPETITION.read(rendered)
    given = {path.name: path.name.partition("_")[0] for path in rendered.rglob("*.jpg")}
    assert len(given) == 90
    rows = table.labelled
    scored = {Path(path).name: NINE[label] for path, label in zip(rows.path, rows.label, strict=True)}
    assert scored == {name: label for name, label in given.items() if label in NINE}
    assert len(scored) < 90
    assert rows.group.is_unique
    assert not table.frame.is_external.any()
    assert (set(table.frame.source), set(table.frame.split)) == ({"acevedo"}, {"acevedo"})
    assert len(table.test) == 0


def test_its_rows_are_the_external_readers(rendered: Path) -> None:
    external = read_source("acevedo", rendered, NINE, None, partial=True)
    ours = COMPETITION.read(rendered).frame
    assert external.is_external.all()
    assert external.drop(columns="is_external").equals(ours.drop(columns="is_external"))


def test_counts_stand_beside_the_published_ones(rendered: Path) -> None:
    report = inspect_input(COMPETITION, rendered, progress=False)
    assert report.counts.published.sum() == 12992
    assert report.counts.found.sum() == len(COMPETITION.read(rendered).frame)
    assert report.unreadable == []
    assert " (published 592)" in describe(report)


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ig").mkdir()
    (tmp_path / "ig" / "XY_1.jpg").write_bytes(JPEG)
    with pytest.raises(UserError, match=r"XY_1\.jpg: 'XY' is no class of Acevedo-20; known ones are BA, BNE"):
        COMPETITION.scan(tmp_path)


def test_there_is_nothing_to_submit(tmp_path: Path) -> None:
    for call in (
        lambda: COMPETITION.write_submission(tmp_path / "s.csv", ["a"], np.array([0])),
        lambda: COMPETITION.check_submission(tmp_path / "s.csv", tmp_path),
        lambda: COMPETITION.upload_steps(tmp_path / "s.csv", "first"),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert str(refused.value) == NO_LEADERBOARD
    assert list(tmp_path.iterdir()) == []
    assert (COMPETITION.submission_suffix, COMPETITION.kaggle_download) == ("", ())


def test_the_commands_end_on_one_line(commands: Commands) -> None:
    error = commands.refused("prepare_input.py", "--competition", "acevedo")
    assert error.startswith("error: input/acevedo: the folder of Acevedo-20 does not exist; download https://data.mend")
    (commands.cwd / "s.csv").write_text("ID,labels\n")
    assert commands.refused("submit.py", "s.csv", "--competition", "acevedo", "--check") == f"error: {NO_LEADERBOARD}"
    assert "https://data.mendeley.com" in commands.refused("prepare_input.py", "--competition", "acevedo", "--download")


def test_a_part_of_the_files_is_told_by_prepare_input(commands: Commands) -> None:
    for i, name in enumerate(NINE):
        path = commands.cwd / "input/acevedo/PBC_dataset_normal_DIB/any" / f"{name}_{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)
    said = commands.succeed("prepare_input.py", "--competition", "acevedo")
    assert said.startswith("Acevedo-20 in input/acevedo\n  acevedo: 9 of 12992 images of 9 groups\n")
    assert said.endswith("every image decodes; 9 counts differ from the published ones\n")
