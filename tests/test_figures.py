"""What the figures show: texts, order, places and numbers of what is drawn, and the same bytes each time."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from leukofold.calibration import Reliability
from leukofold.figures.calibration import reliability_figure
from leukofold.figures.classes import class_bars
from leukofold.figures.confusion import Block, class_order, confusion_figure, lineage_blocks
from leukofold.figures.curves import learning_curves
from leukofold.figures.embedding import scatter_figure
from leukofold.figures.folds import fold_spread_figure
from leukofold.figures.groups import group_accuracy_figure
from leukofold.figures.sheets import SheetCell, SheetRow, cell_sheet, name_lines, overlay
from leukofold.figures.style import (
    class_colours,
    class_markers,
    finished,
    new_figure,
    png_bytes,
    save_figure,
    shorten,
)

pytestmark = pytest.mark.filterwarnings("error")

CLASSES = ("BA", "BL", "BNE", "EO", "LY", "MMY", "MO", "MY", "PC", "PLY", "PMY", "SNE", "VLY")
LINEAGES = {
    "granulopoiesis": ("PMY", "MY", "MMY", "BNE", "SNE"),
    "lymphopoiesis": ("PLY", "LY", "VLY", "PC"),
    "monocytopoiesis": ("MO",),
}


def texts(axes: Axes) -> dict[tuple[float, float], str]:
    """Every text of an axes by its place."""
    return {(float(text.get_position()[0]), float(text.get_position()[1])): text.get_text() for text in axes.texts}


def words(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj() if isinstance(artist, Text) and artist.get_text()]


def row_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def points_of(line: Line2D) -> list[list[float]]:
    """The points of a line, n x 2."""
    return [[float(x), float(y)] for x, y in np.asarray(line.get_xydata())]


def segments(axes: Axes) -> list[list[list[float]]]:
    """Both ends of every bar between two values."""
    lines = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    return [np.asarray(segment).tolist() for artist in lines for segment in artist.get_segments()]


def legend_words(figure: Figure) -> list[str]:
    legend = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


# --- style --------------------------------------------------------------------------------------

# Machado et al. 2009, severity 1, on linear RGB
DEFICIENCIES: dict[str, Any] = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_colours_of_13_classes_are_told_apart_whatever_the_eye(deficiency: str) -> None:
    colours = np.array([to_rgb(colour) for colour in class_colours(CLASSES).values()])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(DEFICIENCIES[deficiency]), 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))
    first, second = np.triu_indices(13, 1)
    apart = np.asarray(deltaE_ciede2000(lab[first], lab[second]))  # type: ignore[no-untyped-call]
    assert apart.min() > (15 if deficiency == "none" else 10)


def test_no_two_of_91_classes_share_colour_and_mark() -> None:
    names = [str(k) for k in range(91)]
    colours, markers = class_colours(names), class_markers(names)
    assert len({(colours[name], markers[name]) for name in names}) == 91


@given(st.text(max_size=40), st.integers(3, 20))
def test_a_shortened_name_keeps_its_ends(text: str, most: int) -> None:
    short = shorten(text, most)
    assert len(short) == min(len(text), most)
    if short != text:
        head, tail = short[: most - 1 - (most - 1) // 2], short[most - (most - 1) // 2 :]
        assert text.startswith(head)
        assert text.endswith(tail)
        assert abs(len(head) - len(tail)) <= 1


def test_two_saves_and_two_figures_give_the_same_bytes_and_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "new" / "confusion.png"
    figure = confusion_figure(CONFUSION, CLASSES, LINEAGES, "title")
    save_figure(path, figure)
    first = path.read_bytes()
    save_figure(path, figure)
    assert path.read_bytes() == first == png_bytes(confusion_figure(CONFUSION, CLASSES, LINEAGES, "title"))
    assert [file.name for file in path.parent.iterdir()] == ["confusion.png"]
    picture = Image.open(io.BytesIO(first))
    assert set(picture.info) == {"dpi"}
    assert picture.info["dpi"] == pytest.approx((160, 160), abs=0.1)
    assert picture.width == pytest.approx(figure.get_figwidth() * 160, abs=1)
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_dollar_signs_are_drawn_as_they_are() -> None:
    def width(word: str) -> float:
        figure = new_figure(3, 2, word)
        finished(figure)
        (title,) = (artist for artist in figure.findobj() if isinstance(artist, Text) and artist.get_text() == word)
        return float(title.get_window_extent().width)

    assert width("$alpha$") == pytest.approx(width("alpha") + 2 * (width("a$a") - width("aa")), abs=3)
    assert width("$\\frac{$ broken") > 0  # as a formula it would raise


# --- confusion ----------------------------------------------------------------------------------


def synthetic_confusion(seed: int = 0) -> np.ndarray:
    counts = np.random.default_rng(seed).integers(0, 4, (13, 13)) ** 3
    return np.asarray(counts + np.diag(np.arange(13) * 1417))


CONFUSION = synthetic_confusion()


def test_classes_stand_by_lineage_and_stage_and_the_rest_as_they_are() -> None:
    order = [CLASSES[k] for k in class_order(CLASSES, LINEAGES)]
    assert order == ["PMY", "MY", "MMY", "BNE", "SNE", "PLY", "LY", "VLY", "PC", "MO", "BA", "BL", "EO"]
    assert class_order(("hem", "all"), {}) == [0, 1]
    assert class_order(("SNE", "LY"), LINEAGES) == [0, 1]
    assert class_order(("LY", "SNE", "X"), LINEAGES) == [1, 0, 2]


def test_blocks_are_of_lineages_that_the_data_have() -> None:
    assert lineage_blocks(CLASSES, LINEAGES) == [
        Block("granulopoiesis", 0, 4), Block("lymphopoiesis", 5, 8), Block("monocytopoiesis", 9, 9),
    ]  # fmt: skip
    assert lineage_blocks(("hem", "all"), LINEAGES) == []
    shared = {"first": ("A", "B"), "second": ("B", "C"), "third": ("B",)}
    assert lineage_blocks(("C", "B", "A"), shared) == [Block("first", 0, 1), Block("second", 2, 2)]


@given(
    st.permutations(list("abcdefgh")),
    st.dictionaries(st.sampled_from(["x", "y", "z"]), st.lists(st.sampled_from("abcdefghij"), max_size=6)),
)
def test_any_lineages_give_an_order_of_all_classes_in_which_they_are_contiguous(
    names: list[str], lineages: dict[str, list[str]]
) -> None:
    order = class_order(names, lineages)
    assert sorted(order) == list(range(8))
    blocks = lineage_blocks(names, lineages)
    covered = [k for block in blocks for k in range(block.first, block.last + 1)]
    assert covered == list(range(len(covered)))  # side by side, from the first class on, none in two
    assert {names[order[k]] for k in covered} == {name for members in lineages.values() for name in members} & {*names}
    for block in blocks:
        assert {names[order[k]] for k in range(block.first, block.last + 1)} <= {*lineages[block.lineage]}


def test_every_count_but_zero_is_written_in_its_cell() -> None:
    axes = confusion_figure(CONFUSION, CLASSES, LINEAGES, "t", rows="given label", columns="suggested label").axes[0]
    order = class_order(CLASSES, LINEAGES)
    expected = {
        (j, i): f"{CONFUSION[a, b]:,}" for i, a in enumerate(order) for j, b in enumerate(order) if CONFUSION[a, b]
    }
    written = {place: text for place, text in texts(axes).items() if text not in LINEAGES}
    assert written == expected
    assert "," in written[4, 4]
    assert row_names(axes) == [label.get_text() for label in axes.get_xticklabels()] == [CLASSES[k] for k in order]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("given label", "suggested label")


def test_a_box_in_the_colour_of_its_name_is_drawn_round_each_lineage() -> None:
    axes = confusion_figure(CONFUSION, CLASSES, {**LINEAGES, "erythropoiesis": ("NRBC",)}, "t").axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(box.get_xy(), box.get_width(), box.get_height()) for box in boxes] == [
        ((-0.5, -0.5), 5, 5), ((4.5, 4.5), 4, 4), ((8.5, 8.5), 1, 1),
    ]  # fmt: skip
    names = [text for text in axes.texts if text.get_text() in LINEAGES]
    assert [text.get_text() for text in names] == list(LINEAGES)
    assert [text.get_position()[1] for text in names] == [2, 6.5, 9]
    colours = [to_hex(box.get_edgecolor()) for box in boxes]
    assert [to_hex(text.get_color()) for text in names] == colours
    assert len(set(colours)) == 3


def test_a_normalised_row_says_its_percentages_and_its_images() -> None:
    counts = np.array([[1999, 1, 0], [0, 0, 0], [1, 1, 2]])
    axes = confusion_figure(counts, ("a", "b", "c"), {}, "t", normalised=True).axes[0]
    cells = {place: text for place, text in texts(axes).items() if not text.startswith("n=")}
    assert cells == {(0, 0): "99.9", (1, 0): "0.1", (0, 2): "25.0", (1, 2): "25.0", (2, 2): "50.0"}
    assert [text.get_text() for text in axes.texts if text.get_text().startswith("n=")] == ["n=2,000", "n=0", "n=4"]
    tiny = confusion_figure(np.array([[99_990, 10], [0, 7]]), ("a", "b"), {}, "t", normalised=True).axes[0]
    assert {texts(tiny)[place] for place in ((0, 0), (1, 0), (1, 1))} == {"99.9", "<0.1", "100"}


def test_confusion_alone_leaves_the_diagonal_white() -> None:
    errors = CONFUSION - np.diag(np.diag(CONFUSION))
    pixels = np.asarray(confusion_figure(errors, CLASSES, LINEAGES, "t").axes[0].images[0].get_array())
    assert (pixels[np.eye(13, dtype=bool)] == 1).all()
    order = class_order(CLASSES, LINEAGES)
    drawn = errors[np.ix_(order, order)] > 0
    assert (pixels[drawn].min(axis=1) < 1).all()
    assert (pixels[~drawn] == 1).all()
    warm = pixels[drawn]
    assert (warm[:, 0] > warm[:, 2]).all()  # more red than blue: confusion


def test_agreement_is_blue_and_more_is_darker() -> None:
    pixels = np.asarray(
        confusion_figure(np.array([[5, 9], [3, 900]]), ("a", "b"), {}, "t").axes[0].images[0].get_array()
    )
    assert pixels[0, 0, 2] > pixels[0, 0, 0]
    assert pixels[0, 0].sum() > pixels[1, 1].sum()
    assert pixels[1, 0].sum() > pixels[0, 1].sum()


# --- learning curves ----------------------------------------------------------------------------


def history(scores: Sequence[float]) -> pd.DataFrame:
    epochs = np.arange(1, len(scores) + 1)
    return pd.DataFrame({"epoch": epochs, "loss": 1 / epochs, "macro_f1": scores, "accuracy": scores[::-1]})


def test_a_run_has_a_row_of_loss_and_score_and_the_best_epoch_of_each_fold_is_marked() -> None:
    histories = {
        "studies/paper001/model=swinv2-data=expanded": {0: history([0.2, 0.6, 0.4]), 2: history([0.1, 0.2, 0.3, 0.25])},
        "second": {1: history([0.5])},
    }
    axes = learning_curves(histories, "macro_f1", "macro-F1").axes
    assert [panel.get_title(loc="left") for panel in axes] == [
        "studies/paper001/model=swinv2-data=expanded",
        "",
        "second",
        "",
    ]
    assert [panel.get_ylabel() for panel in axes] == ["training loss", "macro-F1"] * 2
    curves = [[points_of(line) for line in panel.lines] for panel in axes]
    assert curves[1] == [
        [[1, 0.2], [2, 0.6], [3, 0.4]], [[2, 0.6]], [[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.25]], [[3, 0.3]],
    ]  # fmt: skip
    assert [curves[0][1], curves[0][3]] == [[[2, 1 / 2]], [[3, 1 / 3]]]  # the loss at the best epoch, not the least
    assert curves[3] == [[[1, 0.5]], [[1, 0.5]]]
    assert axes[1].get_ylim() == axes[3].get_ylim()
    colours = [[line.get_color() for line in panel.lines] for panel in axes]
    assert colours[0] == colours[1]
    assert len({colours[1][0], colours[1][2], colours[3][0]}) == 3  # one for each of folds 0, 1 and 2


def test_the_legend_of_the_curves_names_the_folds_of_all_runs() -> None:
    figure = learning_curves({"a": {0: history([1])}, "b": {3: history([1])}}, "accuracy", "accuracy")
    assert legend_words(figure) == ["fold 0", "fold 3", "best epoch"]


def test_the_curves_of_nine_runs_fit_a_page() -> None:
    figure = learning_curves({f"run {k}": {0: history([0.1, 0.2])} for k in range(9)}, "macro_f1", "macro-F1")
    assert figure.get_figheight() <= 10.2
    assert len(figure.axes) == 18


# --- classes ------------------------------------------------------------------------------------


def class_table() -> pd.DataFrame:
    table = pd.DataFrame({"class": ["PLY", "SNE", "LY"], "images": [14, 17_354, 10_801]})
    for measure in ("precision", "recall", "f1"):
        table[measure] = [0.25, 0.75, 0.5]
        table[f"{measure}_low"], table[f"{measure}_high"] = table[measure] - 0.125, table[measure] + 0.125
    table.loc[0, ["precision", "precision_low", "precision_high"]] = np.nan
    return table


def test_classes_are_sorted_by_images_with_a_point_and_an_interval_each() -> None:
    axes = class_bars(class_table(), "Classes").axes
    assert [panel.get_title(loc="left") for panel in axes] == ["precision", "recall (sensitivity)", "F1"]
    assert row_names(axes[0]) == ["SNE", "LY", "PLY"]
    assert [text.get_text() for text in axes[0].texts if "n=" in text.get_text()] == ["n=17,354", "n=10,801", "n=14"]
    assert points_of(axes[1].lines[0]) == [[0.75, 0], [0.5, 1], [0.25, 2]]
    whiskers = segments(axes[1])
    assert [[x for x, _ in whisker] for whisker in whiskers] == [
        [0.625, 0.875],
        [0.375, 0.625],
        [0.125, 0.375],
    ]
    assert [text.get_text() for text in axes[1].texts] == ["0.75", "0.50", "0.25"]


def test_a_measure_that_is_not_defined_is_left_out() -> None:
    panel = class_bars(class_table(), "Classes").axes[0]
    assert points_of(panel.lines[0]) == [[0.75, 0], [0.5, 1]]
    assert [text.get_text() for text in panel.texts if "n=" not in text.get_text()] == ["0.75", "0.50"]


# --- calibration --------------------------------------------------------------------------------


BINS = Reliability(
    np.linspace(0, 1, 5), np.array([np.nan, 0.375, 0.625, 0.875]), np.array([np.nan, 0.25, 0.5, 1.0]),
    np.array([0, 10, 30, 60]), 0.0875,
)  # fmt: skip


def test_bins_with_images_are_points_with_their_gap_to_equality_and_all_are_bars() -> None:
    upper, lower = reliability_figure(BINS).axes
    points = points_of(upper.lines[1])
    assert points == [[0.375, 0.25], [0.625, 0.5], [0.875, 1.0]]
    gaps = segments(upper)
    assert gaps == [[[x, x], [x, y]] for x, y in points]
    bars = [patch for patch in lower.patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == [0, 10, 30, 60]
    assert [bar.get_x() for bar in bars] == [0, 0.25, 0.5, 0.75]
    assert upper.get_title(loc="left") == "as trained: ECE 0.087"


def test_before_and_after_stand_side_by_side_on_the_same_scales() -> None:
    after = Reliability(BINS.edges, BINS.confidence, BINS.confidence, BINS.count[::-1] + 1, 0.0)
    axes = reliability_figure(BINS, after).axes
    assert [panel.get_title(loc="left") for panel in axes[:2]] == [
        "as trained: ECE 0.087", "with temperature scaling: ECE 0.000",
    ]  # fmt: skip
    assert axes[2].get_ylim() == axes[3].get_ylim()
    assert {panel.get_xlim() for panel in axes} == {(0, 1)}


# --- embedding ----------------------------------------------------------------------------------


def test_every_point_is_drawn_once_rare_classes_on_top_and_the_legend_counts_them() -> None:
    rng = np.random.default_rng(0)
    values = rng.permutation(["SNE"] * 70 + ["LY"] * 25 + ["PC"] + ["BA"] * 4)
    points = rng.normal(size=(100, 2))
    order = ("BA", "LY", "PC", "PLY", "SNE")
    figure = scatter_figure(points, values.tolist(), "t-SNE", order)
    layers = [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]
    for layer, name in zip(layers, ("SNE", "LY", "BA", "PC"), strict=True):
        assert np.asarray(layer.get_offsets()).tolist() == points[values == name].tolist()
        assert to_hex(np.asarray(layer.get_facecolor())[0]) == class_colours(order)[name]
    heights = [layer.get_zorder() for layer in layers]
    assert heights == sorted(set(heights))
    assert all(layer.get_rasterized() for layer in layers)
    assert legend_words(figure) == ["BA  4", "LY  25", "PC  1", "SNE  70"]


def test_a_name_stands_where_its_points_are_densest() -> None:
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal((0, 0), 0.1, (300, 2)), rng.normal((50, 50), 0.1, (100, 2)), [[9.0, 9.0]]])
    axes = scatter_figure(points, ["a"] * 400 + ["b"], "t", ["a", "b"]).axes[0]
    places = {text.get_text(): np.asarray(text.xy) for text in axes.texts}  # type: ignore[attr-defined]
    assert places["a"] == pytest.approx([0, 0], abs=0.1)
    assert places["b"] == pytest.approx([9, 9])


def test_names_of_images_break_after_a_separator_where_both_lines_fit() -> None:
    assert name_lines("01561941") == "01561941"
    assert name_lines("UID_37_10_1_all") == "UID_37_\n10_1_all"
    assert name_lines("x" * 20) == "x" * 10 + "\n" + "x" * 10
    assert name_lines("a_" + "x" * 20) == "a_" + "x" * 9 + "\n" + "x" * 11
    assert [len(line) for line in name_lines("y" * 60).split("\n")] == [13, 13]


def test_points_are_smaller_where_there_are_many() -> None:
    def area(n: int) -> float:
        axes = scatter_figure(np.random.default_rng(0).normal(size=(n, 2)), ["a"] * n, "t", ["a"]).axes[0]
        layer = axes.collections[0]
        assert isinstance(layer, PathCollection)
        return float(np.asarray(layer.get_sizes())[0])

    assert area(100) > area(3000) > area(20_000)


# --- groups -------------------------------------------------------------------------------------


def group_table(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    images = rng.integers(1, 400, n)
    return pd.DataFrame({"group": [f"p{k}" for k in range(n)], "images": images, "accuracy": rng.random(n)})


def scattered(axes: Axes) -> list[PathCollection]:
    return [artist for artist in axes.collections if isinstance(artist, PathCollection)]


def test_groups_are_sorted_by_accuracy_named_and_sized_by_their_images() -> None:
    table = group_table(28)
    figure = group_accuracy_figure(table, "Patients")
    axes = figure.axes[0]
    (layer,) = scattered(axes)
    ordered = table.sort_values("accuracy")
    offsets, sizes = np.asarray(layer.get_offsets()), np.asarray(layer.get_sizes())
    assert offsets.tolist() == [[k, value] for k, value in enumerate(ordered["accuracy"])]
    assert [label.get_text() for label in axes.get_xticklabels()] == ordered["group"].tolist()
    slope, start = np.polyfit(ordered["images"], sizes, 1)
    assert sizes == pytest.approx(slope * ordered["images"].to_numpy() + start)  # the area grows evenly
    overall = (table["accuracy"] * table["images"]).sum() / table["images"].sum()
    assert legend_words(figure) == [f"all images: {overall:.3f}", "n=10", "n=100"]


def test_of_400_groups_the_worst_are_listed() -> None:
    table = group_table(400)
    axes = group_accuracy_figure(table, "Blocks").axes[0]
    assert len(np.asarray(scattered(axes)[0].get_offsets())) == 400
    (listed,) = (text.get_text().splitlines() for text in axes.texts)
    worst = table.sort_values("accuracy").head(6)
    assert listed[1:] == [
        f"{row.group}: {row.accuracy:.2f} (n={row.images})" for row in worst.itertuples()
    ]  # fmt: skip
    assert axes.get_xlabel() == "400 groups, lowest accuracy first"


def test_groups_are_coloured_by_their_label() -> None:
    table = group_table(10).assign(label=["all", "hem"] * 5)
    figure = group_accuracy_figure(table, "Patients")
    layers = scattered(figure.axes[0])
    assert [len(np.asarray(layer.get_offsets())) for layer in layers] == [5, 5]
    assert len({to_hex(np.asarray(layer.get_facecolor())[0]) for layer in layers}) == 2
    assert legend_words(figure)[1:3] == ["all", "hem"]


# --- folds --------------------------------------------------------------------------------------


def test_each_run_has_a_row_with_a_ring_per_fold_its_score_and_interval() -> None:
    scores = pd.DataFrame({"run": ["b", "a", "a"], "fold": [0, 0, 1], "value": [0.5, 0.25, 0.75]})
    whole = {"a": (0.5, 0.375, 0.625), "b": (0.5, np.nan, np.nan)}
    axes = fold_spread_figure(scores, whole, "macro-F1").axes[0]
    rings = [points_of(line) for line in axes.lines if line.get_marker() == "o"]
    assert rings == [[[0.25, 0], [0.75, 0]], [[0.5, 1]]]
    assert [points_of(line) for line in axes.lines if line.get_marker() == "D"] == [[[0.5, 0]], [[0.5, 1]]]
    assert segments(axes)[0] == [[0.375, 0], [0.625, 0]]
    assert [text.get_text() for text in axes.texts] == ["a", "0.5000 (0.375 to 0.625)", "b", "0.5000"]
    low, high = axes.get_ylim()
    assert low > high  # the first run is on top
    assert axes.get_xlabel() == "macro-F1"


# --- sheets -------------------------------------------------------------------------------------


def cells(n: int, **kinds: Any) -> list[SheetCell]:
    return [SheetCell(np.full((20, 20, 3), 10 * k, np.uint8), **kinds) for k in range(n)]


def test_a_sheet_shows_every_cell_in_its_row_with_its_caption() -> None:
    rows = [
        SheetRow("SNE -> BNE", "52 issues", cells(8, caption="UID_H10_1234_56_hem.bmp\nBNE 0.87")),
        SheetRow("b", "", cells(3)),
    ]
    figure = cell_sheet(rows, "Likeliest issues", "Below each cell: its image.")
    axes = figure.axes[0]
    extents = [tuple(image.get_extent()) for image in axes.images]
    assert len(extents) == 11
    tops, lefts = [extent[3] for extent in extents], [extent[0] for extent in extents]
    assert tops == sorted(tops)
    assert (len(set(tops[:8])), len(set(tops[8:])), len(set(tops))) == (1, 1, 2)
    assert lefts[:8] == sorted(lefts[:8])
    assert lefts[8:] == lefts[:3]
    assert max(extent[1] for extent in extents) <= figure.get_figwidth() == 7.2
    assert [np.asarray(image.get_array())[0, 0, 0] for image in axes.images] == [10 * k for k in (*range(8), *range(3))]
    written = [text.get_text() for text in axes.texts]
    caption = next(text for text in written if "BNE 0.87" in text).splitlines()
    assert caption[0].startswith("UID_H1")
    assert caption[0].endswith(".bmp")
    assert "\u2026" in caption[0]
    assert {"Likeliest issues", "SNE -> BNE", "52 issues", "Below each cell: its image."} <= set(written)


def test_ten_rows_of_eight_fit_a_page() -> None:
    rows = [SheetRow("SNE -> BNE", "52 issues", cells(8, caption="a\nb")) for _ in range(10)]
    assert cell_sheet(rows, "t", "n").get_figheight() <= 10.2


def test_a_frame_has_the_colour_of_its_cell() -> None:
    row = SheetRow("a", "", [*cells(1, colour="#d06a00"), *cells(1)])
    axes = cell_sheet([row], "t").axes[0]
    framed, plain = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert to_hex(framed.get_edgecolor()) == "#d06a00"
    assert framed.get_linewidth() > plain.get_linewidth()


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_heat_is_mixed_in_by_its_strength(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, heat = rng.integers(0, 256, (6, 5, 3), np.uint8), rng.random((6, 5))
    heat[0], heat[1] = 0, 1
    mixed = overlay(image, heat)
    assert (mixed.dtype.name, mixed.shape) == ("uint8", image.shape)
    assert (mixed[0] == image[0]).all()
    yellow = 255 * np.array(colormaps["viridis"](1.0)[:3])
    assert np.abs(mixed[1] - (0.35 * image[1] + 0.65 * yellow)).max() <= 0.5 + 1e-9


# --- edge cases of all --------------------------------------------------------------------------

LONG = "Out-of-fold predictions of WBCBench 2026, mean of 9 networks over 5 folds, as LEUKOFOLD sees them " * 2
RUN = "studies/paper001/model=convnextv2_tiny-data=expanded-denoised"
ODD = ("$a$", "$\\frac{", "x_1^2 $", "100%")


def odd_table() -> pd.DataFrame:
    table = class_table().assign(**{"class": ODD[:3]})
    return table.assign(f1=np.nan, f1_low=np.nan, f1_high=np.nan)


EDGES: dict[str, Any] = {
    "confusion of two classes": lambda: confusion_figure(np.array([[3, 1], [0, 2]]), ODD[:2], {}, ODD[0]),
    "confusion, nothing counted": lambda: confusion_figure(np.zeros((2, 2), int), ODD[:2], {"$l$": ODD[:1]}, ""),
    "confusion, normalised and empty": lambda: confusion_figure(np.zeros((2, 2), int), ODD[:2], {}, "", True),
    "confusion of long names": lambda: confusion_figure(
        np.full((3, 3), 123_456), ["segmented neutrophil " + name for name in ODD[:3]], {"lineage": ODD}, LONG
    ),
    "confusion of 26 classes": lambda: confusion_figure(np.eye(26, dtype=int), [*map(str, range(26))], {}, "t", True),
    "one epoch of one fold": lambda: learning_curves({ODD[0]: {0: history([0.5])}}, "macro_f1", ODD[2]),
    "a class without any value": lambda: class_bars(odd_table(), ODD[0]),
    "one bin with images": lambda: reliability_figure(
        Reliability(np.linspace(0, 1, 3), np.array([np.nan, 0.9]), np.array([np.nan, 1.0]), np.array([0, 1]), 0.1)
    ),
    "one point": lambda: scatter_figure(np.zeros((1, 2)), ODD[:1], ODD[0], ODD),
    "one group": lambda: group_accuracy_figure(group_table(1).assign(group=ODD[:1], accuracy=1.0, images=1), ODD[0]),
    "groups that are all right": lambda: group_accuracy_figure(group_table(61).assign(accuracy=1.0), ODD[0]),
    "one run of one fold": lambda: fold_spread_figure(
        pd.DataFrame({"run": [ODD[0]], "fold": [0], "value": [0.5]}), {ODD[0]: (0.5, np.nan, np.nan)}, ODD[1]
    ),
    "runs of long names": lambda: fold_spread_figure(
        pd.DataFrame({"run": [RUN], "fold": [0], "value": [0.5]}), {RUN: (0.5, 0.4, 0.6)}, "macro-F1"
    ),
    "curves of long names": lambda: learning_curves({RUN: {0: history([0.5])}}, "macro_f1", "balanced accuracy"),
    "groups of long names": lambda: group_accuracy_figure(group_table(60).assign(group="p" * 50, label=RUN), LONG),
    "sources of long names": lambda: scatter_figure(np.eye(2), [RUN, "b"], LONG, [RUN, "b"]),
    "one cell": lambda: cell_sheet([SheetRow(ODD[0], ODD[1], cells(1, caption=ODD[2]))], ODD[0], ODD[1]),
    "cells of long names": lambda: cell_sheet([SheetRow(RUN, RUN, cells(8, caption=RUN))], LONG, LONG),
}  # fmt: skip


@pytest.mark.parametrize("case", EDGES)
def test_edge_cases_are_drawn_without_a_warning_the_same_each_time_and_literally(case: str) -> None:
    figure = EDGES[case]()
    assert png_bytes(figure) == png_bytes(figure)
    assert all(not artist.get_parse_math() for artist in figure.findobj() if isinstance(artist, Text))
    assert words(figure)
    assert figure.get_figwidth() <= 7.2
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.01
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01
