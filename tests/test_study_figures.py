"""The pictures of a study: numbers of the bands, what is chosen to be drawn, and what is written when."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import confusion_matrix

from leukofold.config import Config
from leukofold.figures.bands import Band, band_figure
from leukofold.figures.style import COLOURS, new_figure, png_bytes
from leukofold.runs import Predictions, RunFolder
from leukofold.studies import pictures
from leukofold.studies.grid import Grid, StudyRun, load_study
from leukofold.studies.results import Best, Place, Results, collect_results
from leukofold.studies.scoring import Scored

if TYPE_CHECKING:
    from tests.conftest import RunMaker

pytestmark = pytest.mark.filterwarnings("error")


def repeated(columns: list[list[float]]) -> pd.DataFrame:
    """Repetitions of a training, the epoch as index; the shorter ones have stopped."""
    return pd.concat([pd.Series(column, index=range(1, len(column) + 1)) for column in columns], axis=1)


def repetitions(band: Band) -> np.ndarray:
    """A band's values, repetitions x epochs."""
    return np.asarray(band.values).T


def words(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj() if isinstance(artist, Text) and artist.get_text()]


# --- bands -----------------------------------------------------------------------------------------------------


def test_a_line_is_the_mean_and_its_band_one_deviation() -> None:
    columns = [[0.5, 0.7, 0.8], [0.6, 0.6, 0.9], [0.4, 0.8, 0.85]]
    (axes,) = band_figure({"accuracy": [Band("plain", repeated(columns), 2)]}, "A title", "A note").axes
    (line,) = axes.get_lines()
    mean, deviation = np.mean(columns, axis=0), np.std(columns, axis=0, ddof=1)
    assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3]
    assert np.asarray(line.get_ydata()) == pytest.approx(mean)
    assert to_hex(str(line.get_color())) == COLOURS[2]
    (band,) = (artist for artist in axes.collections if isinstance(artist, PolyCollection))
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in np.asarray(band.get_paths()[0].vertices)}
    for end in (mean - deviation, mean + deviation):
        assert {(epoch + 1.0, round(float(value), 6)) for epoch, value in enumerate(end)} <= corners


def test_a_line_ends_where_fewer_than_half_of_the_repetitions_go_on() -> None:
    values = repeated([[1, 1, 1, 1, 1], [2, 2, 2], [3, 3, 3], [6]])
    (axes,) = band_figure({"loss": [Band("plain", values, 0)]}, "").axes
    (line,) = axes.get_lines()
    assert np.asarray(line.get_ydata()).tolist() == [3, 2, 2]  # one of four goes on after epoch 3


def test_one_repetition_has_no_band_and_one_epoch_is_a_point() -> None:
    (axes,) = band_figure({"loss": [Band("plain", repeated([[0.5]]), 0)]}, "").axes
    (line,) = axes.get_lines()
    assert (np.asarray(line.get_ydata()).tolist(), line.get_marker()) == ([0.5], "o")
    assert all(not np.size(path.vertices) for artist in axes.collections for path in artist.get_paths())


def test_panels_lines_and_scales_are_told() -> None:
    low, high = repeated([[0.1, 0.2]]), repeated([[0.8, 0.9]])
    bands = {"training loss": [Band("plain", low, 0)], "validation loss": [Band("plain", high, 0)]}
    bands["F1"] = [Band("plain", high, 0), Band("plain, no TTA", low, 0, dashed=True)]
    panels: dict[str, list[Band]] = bands
    figure = band_figure(panels, "Costs $1 and $2", "A note.", ["training loss", "validation loss"])
    first, second, third = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(panels)
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] < 0.1 < 0.9 < first.get_ylim()[1]
    assert [line.get_linestyle() for line in third.get_lines()] == ["-", "--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "plain, no TTA"]
    assert {"Costs $1 and $2", "A note."} <= {*words(figure)}


@pytest.mark.parametrize("count", range(1, 7))
def test_every_number_of_panels_has_room_for_title_legend_and_note(count: int) -> None:
    names = [f"a_rather_long_name_of_a_level-{k}" for k in range(8)]
    values = repeated([[0.1, 0.5, 0.7], [0.2, 0.4, 0.9]])
    panels = {f"panel {k}": [Band(name, values, i) for i, name in enumerate(names)] for k in range(count)}
    figure = band_figure(panels, "A title that is as long as titles get " * 4, "A note.")
    legend = figure.legends[0].get_window_extent()
    drawn = [axes for axes in figure.axes if axes.axison]
    assert len(drawn) == count
    boxes = [box for axes in drawn if (box := axes.get_tightbbox()) is not None]
    assert max(box.y1 for box in boxes) <= legend.y0 + 1  # nothing lies under the legend
    assert legend.x1 <= figure.bbox.x1
    note = next(text for text in figure.findobj(Text) if text.get_text() == "A note.")
    assert note.get_window_extent().y1 <= min(box.y0 for box in boxes) + 1


def test_the_same_bands_give_the_same_bytes() -> None:
    panels = {"loss": [Band("plain", repeated([[0.1, 0.5], [0.2, 0.4]]), 0)]}
    assert png_bytes(band_figure(panels, "t", "n")) == png_bytes(band_figure(panels, "t", "n"))


# --- a study's pictures ----------------------------------------------------------------------------------------


def study(folder: Path, axes: dict[str, Any], **keys: Any) -> Grid:
    """Loads a study of C-NMC in three folds."""
    settings = {"data.competition": "cnmc", "folds.count": 3, **keys.pop("set", {})}
    (folder / "small.yaml").write_text(json.dumps({"axes": axes, "set": settings, **keys}), encoding="utf-8")
    return load_study(folder / "small.yaml")


def make_run(
    maker: "RunMaker", run: StudyRun, seed: int, epochs: int = 3, without_tta: bool = True
) -> list[pd.DataFrame]:
    """Writes a run with histories; returns these, by fold."""
    made = maker.make(run.name, seed, config=run.config.resolved(), config_digest=run.config.digest())
    rng = np.random.default_rng(seed)
    histories = []
    for k in range(3):
        columns = ["loss", "validation_loss", "weighted_f1", "sensitivity", "specificity"]
        columns += [f"{column}_without_tta" for column in columns[2:]] if without_tta else []
        table = pd.DataFrame(rng.random((epochs, len(columns))), columns=columns)
        table.insert(0, "epoch", range(1, epochs + 1))
        made.folder.fold(k).write_history(table.to_dict("records"))  # type: ignore[arg-type]
        histories.append(table.set_index("epoch"))
    return histories


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Notes what the figures were drawn of, and draws nothing."""
    noted: dict[str, Any] = {}

    def note(name: str) -> Any:
        return lambda *arguments: noted.update({name: arguments}) or new_figure(1, 1)

    for name in ("band_figure", "group_accuracy_figure", "confusion_figure"):
        monkeypatch.setattr(pictures, name, note(name))
    return noted


LEVELS = {"recipe": {"proposal": {}, "flat": {"set": {"optimizer.lr": 0.01}}}}


def test_curves_are_of_every_seeds_mean_over_its_folds(
    tmp_path: Path, cnmc_runs: "RunMaker", drawn: dict[str, Any]
) -> None:
    grid = study(tmp_path, LEVELS, seeds=[0, 1], metrics=["weighted_f1"], title="Two recipes")
    made = [make_run(cnmc_runs, run, number) for number, run in enumerate(grid.runs)]
    files = pictures.save_pictures(collect_results(grid, cnmc_runs.root, progress=False), cnmc_runs.root)
    folder = cnmc_runs.root / "studies" / "small" / "figures"
    assert files == [folder / f"{name}.png" for name in ("learning_curves", "subjects", "confusion")]
    assert sorted(folder.iterdir()) == sorted(files)
    panels, title, note, alike = drawn["band_figure"]
    assert list(panels) == ["training loss", "validation loss", "weighted F1", "sensitivity", "specificity"]
    assert (title, alike) == ("Two recipes", ["training loss", "validation loss"])
    assert note == (
        "Metrics of the validation images; mean over 2 seeds (each the mean of 3 folds); band: one standard deviation."
    )
    names = [(band.name, band.colour, band.dashed) for band in panels["sensitivity"]]
    assert names == [
        ("proposal", 0, False), ("proposal, no TTA", 0, True), ("flat", 1, False), ("flat, no TTA", 1, True),
    ]  # fmt: skip
    assert [band.name for band in panels["training loss"]] == ["proposal", "flat"]
    for column, band in (("weighted_f1", panels["weighted F1"][2]), ("loss", panels["training loss"][1])):
        expected = [np.mean([fold[column] for fold in folds], axis=0) for folds in made[2:]]  # flat's two seeds
        assert repetitions(band) == pytest.approx(np.array(expected))
    expected = [np.mean([fold.specificity_without_tta for fold in folds], axis=0) for folds in made[:2]]
    assert repetitions(panels["specificity"][1]) == pytest.approx(np.array(expected))


def test_curves_of_one_seed_are_over_folds(tmp_path: Path, cnmc_runs: "RunMaker", drawn: dict[str, Any]) -> None:
    grid = study(tmp_path, LEVELS, metrics=["macro_auc"])
    made, _ = (make_run(cnmc_runs, run, number, without_tta=False) for number, run in enumerate(grid.runs))
    pictures.save_pictures(collect_results(grid, cnmc_runs.root, progress=False), cnmc_runs.root)
    panels, _, note, _ = drawn["band_figure"]
    assert "weighted F1" in panels  # ranks leave no curve: the competition's own metric stands in
    assert "mean over 3 folds; band" in note
    assert [band.name for band in panels["weighted F1"]] == ["proposal", "flat"]
    expected = np.array([fold.weighted_f1 for fold in made])
    assert repetitions(panels["weighted F1"][0]) == pytest.approx(expected)


def test_of_many_levels_the_best_are_drawn_in_the_order_of_the_grid(
    tmp_path: Path, cnmc_runs: "RunMaker", drawn: dict[str, Any]
) -> None:
    axes = {
        "rate": {f"lr{k}": {"set": {"optimizer.lr": 0.01 * (k + 1)}} for k in range(5)},
        "size": {"small": {}, "large": {"set": {"image.size": 256}}},
    }
    grid = study(tmp_path, axes, metrics=["weighted_f1"])
    for number, run in enumerate(grid.runs):
        make_run(cnmc_runs, run, number)
    results = collect_results(grid, cnmc_runs.root, progress=False)
    pictures.save_pictures(results, cnmc_runs.root)
    panels, _, note, _ = drawn["band_figure"]
    assert note.endswith("Shown: of 10 the 8 with the best weighted F1.")
    values = {
        "-".join(row.place.levels.values()): row.values["weighted_f1"].value
        for row in results.rows
        if row.place.view == "tta"
    }
    worst = sorted(values, key=lambda name: values[name])[:2]
    names = [band.name for band in panels["weighted F1"]]
    assert names == [name for name in values if name not in worst]  # and none without TTA: too many lines
    assert [band.colour for band in panels["weighted F1"]] == list(range(8))


def best_of(labels: list[int], groups: list[str], on: str = "folds", **metadata: Any) -> Best:
    """A best run made by hand whose every third image is wrong."""
    label = np.array(labels)
    right = np.eye(2, dtype=np.float32)[label]
    logits = np.where(np.arange(len(label))[:, None] % 3 == 2, 1 - right, right)
    ids = np.array([f"{number}.bmp" for number in range(len(label))])
    scored = Predictions(ids, logits, right, ("hem", "all"), np.array(groups), np.zeros(len(label), bool), label)
    config = Config().resolved()
    known = {"competition": "cnmc", "rendered": False, "split_by": "group", "config": config, **metadata}
    place = Place(on, "tta", {"recipe": "proposal"})
    return Best("studies/small/proposal-seed1", place, 0.75, 24, Scored(scored, (scored,), (0, 1), known))


def test_the_best_runs_patients_and_confusion_are_drawn(tmp_path: Path, drawn: dict[str, Any]) -> None:
    grid = study(tmp_path, LEVELS, metrics=["weighted_f1"])
    labels, groups = [1, 1, 1, 0, 0, 0], ["a", "a", "b", "c", "c", "c"]
    best = best_of(labels, groups, on="holdout", rendered=True)
    files = pictures.save_pictures(Results(grid, [], [], best=best), tmp_path)
    assert [path.name for path in files] == ["subjects.png", "confusion.png"]
    table, title = drawn["group_accuracy_figure"]
    found = {row.group: (row.images, row.accuracy, row.label) for row in table.itertuples()}
    assert found == {"a": (2, 1.0, "all"), "b": (1, 0.0, "all"), "c": (3, pytest.approx(2 / 3), "hem")}
    assert title == (
        "proposal-seed1: weighted F1 0.7500, the best of 24 runs; hold-out, mean of the folds' networks; TTA; "
        "RENDERED images"
    )
    counts, names, lineages, same_title = drawn["confusion_figure"]
    predicted = [1, 1, 0, 0, 0, 1]
    assert counts.tolist() == confusion_matrix(labels, predicted).tolist()
    assert (names, lineages, same_title) == (("hem", "all"), {}, title)


def test_patients_of_several_classes_have_no_colour_and_none_are_drawn_where_none_are_known(
    tmp_path: Path, drawn: dict[str, Any]
) -> None:
    grid = study(tmp_path, LEVELS)
    best = best_of([0, 1, 1, 1], ["a", "a", "b", "b"], split_by="image")
    pictures.save_pictures(Results(grid, [], [], best=best), tmp_path)
    assert "label" not in drawn["group_accuracy_figure"][0]
    assert drawn["confusion_figure"][3].endswith("; out of fold; TTA; image-level folds")
    drawn.clear()
    nobody = best_of([0, 1, 1], ["1", "2", "3"], competition="acevedo")
    files = pictures.save_pictures(Results(grid, [], [], best=nobody), tmp_path)
    assert [path.name for path in files] == ["confusion.png"]
    assert list(drawn) == ["confusion_figure"]


def test_where_nothing_has_run_nothing_is_written(tmp_path: Path) -> None:
    grid = study(tmp_path, LEVELS)
    assert pictures.save_pictures(collect_results(grid, tmp_path / "oof", progress=False), tmp_path / "oof") == []
    assert not (tmp_path / "oof").exists()


def test_pictures_are_written_whole(tmp_path: Path, cnmc_runs: "RunMaker") -> None:
    grid = study(tmp_path, {"recipe": {"proposal": {}}}, metrics=["weighted_f1"])
    make_run(cnmc_runs, grid.runs[0], 0)
    make_run(cnmc_runs, grid.runs[0], 1)
    (RunFolder(grid.runs[0].name, cnmc_runs.root).fold(1).history).unlink()
    files = pictures.save_pictures(collect_results(grid, cnmc_runs.root, progress=False), cnmc_runs.root)
    assert len(files) == 3
    for path in files:
        with Image.open(path) as picture:
            picture.verify()
