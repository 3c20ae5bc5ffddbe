"""A study's table for people and for programs, and the data counted beside a publication's numbers."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leukofold.competitions import get_competition
from leukofold.config import Config, DataConfig
from leukofold.rendering import RenderSpec
from leukofold.studies.composition import Composition, Count, count_composition
from leukofold.studies.grid import Grid, load_study
from leukofold.studies.results import Comparison, Place, Results, Row, Value
from leukofold.studies.schema import RESULT_COLUMNS, DataPart, View
from leukofold.studies.table import to_csv, to_markdown, write_tables

AXES = {"model": {"resnet": {}, "vit": {"set": {"model.backbone": "test_vit"}}}}
HONEST, NOT_RUN = ("group", False), ("group", None)


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies lie below the working folder."""
    monkeypatch.chdir(tmp_path)


def study(**keys: Any) -> Grid:
    """Loads a study of two models."""
    Path("small.yaml").write_text(json.dumps({"axes": AXES, **keys}), encoding="utf-8")
    return load_study(Path("small.yaml"))


def row(
    model: str,
    values: dict[str, Value],
    view: View = "tta",
    on: str = "folds",
    folds: tuple[int, int] = (5, 5),
    of: tuple[str, bool | None] = HONEST,
) -> Row:
    """A row made by hand."""
    return Row(Place(on, view, {"model": model}), values, *folds, 30 if values else 0, *of, (f"studies/small/{model}",))


def table_of(text: str, number: int = 0) -> list[list[str]]:
    """Returns the cells of one of the Markdown tables, whose columns must be aligned; without the rule."""
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({len(line) for line in table}) == 1 for table in tables)
    return [[cell.strip() for cell in line.strip("|").split("|")] for i, line in enumerate(tables[number]) if i != 1]


# --- Markdown --------------------------------------------------------------------------------------------------


def test_markdown_says_what_ran_and_on_what() -> None:
    published = [
        {"model": "vit", "views": "tta", "macro_f1": 0.75, "balanced_accuracy": 0.8},
        {"model": "resnet", "views": "single", "macro_f1": 1},
    ]
    grid = study(title="A small study", note="Made by hand.", metrics=["macro_f1", "accuracy", "balanced_accuracy"],
                 published=published, ensemble="model")  # fmt: skip
    values = {"macro_f1": Value(0.5, 0.4, 0.625), "accuracy": Value(0.25), "balanced_accuracy": Value(0.125)}
    rows = [
        row("resnet", {}, "single", folds=(0, 5), of=NOT_RUN),
        row("vit", values, folds=(4, 5), of=("image", True)),
        row("resnet", values),
    ]
    text = to_markdown(Results(grid, rows, [], remarks=["studies/small/vit: something"]))
    lines = text.splitlines()
    assert lines[:3] == ["# A small study", "", "Made by hand."]
    assert sum("RENDERED images: these numbers say nothing about patients" in line for line in lines) == 1
    assert sum("Image-level folds: patients cross, scores too high" in line for line in lines) == 1
    assert lines[-1] == "- studies/small/vit: something"
    header, first, second, third = table_of(text)
    assert header == [
        "model", "views", "macro-F1", "paper", "accuracy", "balanced accuracy", "paper", "folds", "images", "split",
        "rendered",
    ]  # fmt: skip
    assert first == ["resnet", "no TTA", "not run", "1.0000", "-", "-", "-", "0/5", "0", "group", "-"]
    interval = "0.5000 [0.4000, 0.6250]"
    assert second[:7] == ["vit", "TTA", interval, "0.7500", "0.2500", "0.1250", "0.8000"]
    assert second[7:] == ["4/5 partial", "30", "image", "yes"]
    assert third[2:4] == [interval, "-"]
    assert third[7:] == ["5/5", "30", "group", "no"]
    assert (
        "Out of fold, the competition's images only. macro-F1 with its 95 % interval (bootstrap over patients, or over "
        "images without). Ensemble: mean of the logits over model. Paper: as published." in lines
    )


def test_clean_results_carry_no_warning() -> None:
    text = to_markdown(Results(study(), [row("resnet", {"macro_f1": Value(0.5)})], []))
    assert text.startswith("# studies/small\n\n| model ")
    assert "RENDERED" not in text
    assert "Image-level" not in text
    assert "## " not in text


def test_seeds_are_told_with_deviation_and_range_ours_and_the_papers() -> None:
    whole = {"mean": 0.8789, "std": 0.009, "min": 0.8628, "max": 0.8981}
    grid = study(
        seeds=[0, 1, 2],
        published=[
            {"model": "resnet", "views": "tta", "macro_f1": whole},
            {"model": "resnet", "views": "single", "macro_f1": {"mean": 0.8692, "std": 0.0081}},
            {"model": "vit", "views": "tta", "macro_f1": {"mean": 0.9663, "max": 0.9739}},
            {"model": "vit", "views": "single", "macro_f1": {"min": 0.5}},
        ],
    )  # fmt: skip
    value = {"macro_f1": Value(0.88, std=0.01, lowest=0.8625, highest=0.89)}
    rows = [row(model, value, view) for model in ("resnet", "vit") for view in ("tta", "single")]
    text = to_markdown(Results(grid, rows, []))
    _, *body = table_of(text)
    assert {cells[2] for cells in body} == {"0.8800 ± 0.0100 (0.8625 to 0.8900)"}
    assert [cells[3] for cells in body] == [
        "0.8789 ± 0.0090 (0.8628 to 0.8981)",
        "0.8692 ± 0.0081",
        "0.9663 (to 0.9739)",
        "(from 0.5000)",
    ]
    assert "Mean ± standard deviation over 3 seeds (lowest to highest). Paper: as published." in text


def test_a_hold_out_has_a_column_of_its_own() -> None:
    grid = study(on=["folds", "holdout"], set={"folds.holdout": 0.1}, over="folds", views=["tta"])
    value = {"macro_f1": Value(0.5, std=0.1, lowest=0.25, highest=0.75)}
    rows = [
        row("resnet", value),
        row("resnet", value, on="holdout"),
        row("vit", {}, on="holdout", folds=(0, 0), of=NOT_RUN),
    ]
    text = to_markdown(Results(grid, rows, []))
    header, *body = table_of(text)
    assert header[:4] == ["model", "scored on", "views", "macro-F1"]
    assert [cells[1] for cells in body] == ["out of fold", "hold-out", "hold-out"]
    assert [cells[3] for cells in body] == ["0.5000 ± 0.1000 (0.2500 to 0.7500)"] * 2 + ["no hold-out"]
    assert "Hold-out: images that no fold trains on or selects by, scored by each fold's network alone." in text
    assert "Mean ± standard deviation over the folds, each scored alone (lowest to highest)." in text
    pooled = study(on=["holdout"], set={"folds.holdout": 0.1}, seeds=[1, 2])
    text = to_markdown(Results(pooled, rows, []))
    assert "scored by the mean logits of the folds' networks. Mean ± standard deviation over 2 seeds" in text
    assert "Out of fold" not in text


def test_comparisons_have_a_table_each_and_a_p_value_with_its_meaning() -> None:
    grid = study(compare=["model", "views"], seeds=[0, 1], metrics=["weighted_f1"])
    difference = Value(-0.02, std=0.01, lowest=-0.04, highest=0.005)
    vit, single = Place("folds", "tta", {"model": "vit"}), Place("folds", "tta", {"model": "resnet"})
    comparisons = [
        Comparison("model", vit, "resnet", 0.86, 0.88, difference, True, 0.0123),
        Comparison("model", vit, "resnet", 0.86, 0.88, difference, True, 3e-9),
        Comparison("views", single, "single", 0.9, 0.88, Value(0.02), True, None),
    ]
    text = to_markdown(Results(grid, [row("resnet", {"weighted_f1": Value(0.88)})], comparisons))
    assert "## weighted F1 by model, each against resnet on the same images (paired)" in text
    assert table_of(text, 1) == [
        ["views", "model", "weighted F1", "resnet", "difference", "p"],
        ["TTA", "vit", "0.8600", "0.8800", "-0.0200 ± 0.0100 (-0.0400 to +0.0050)", "0.0123"],
        ["TTA", "vit", "0.8600", "0.8800", "-0.0200 ± 0.0100 (-0.0400 to +0.0050)", "<0.0001"],
    ]
    assert (
        "p: one-sided Mann-Whitney U test over the seeds (Prellberg and Kramer 2019, section 4.4): how often chance "
        "alone puts resnet so far ahead. Small: resnet is better."
    ) in text
    assert "## weighted F1 by views, each against no TTA on the same images (paired)" in text
    assert table_of(text, 2) == [
        ["model", "views", "weighted F1", "no TTA", "difference"],
        ["resnet", "TTA", "0.9000", "0.8800", "+0.0200"],
    ]


# --- CSV -------------------------------------------------------------------------------------------------------


def test_csv_is_long_and_complete() -> None:
    published = [{"model": "vit", "views": "tta", "macro_f1": {"mean": 0.75, "std": 0.5, "min": 0.25, "max": 1}}]
    grid = study(metrics=["macro_f1", "accuracy"], published=published)
    rows = [
        row("resnet", {"macro_f1": Value(0.5, 0.4, 0.625), "accuracy": Value(0.3, std=0.1, lowest=0.2, highest=0.4)}),
        row("vit", {}, folds=(0, 5), of=NOT_RUN),
    ]
    results = Results(grid, rows, [])
    files = write_tables(results)
    assert files == (Path("oof/studies/small/table.md"), Path("oof/studies/small/table.csv"))
    assert files[0].read_text(encoding="utf-8") == to_markdown(results)
    assert files[1].read_text(encoding="utf-8") == to_csv(results)
    assert sorted(path.name for path in Path("oof/studies/small").iterdir()) == ["table.csv", "table.md"]
    table = pd.read_csv(io.StringIO(to_csv(results)), dtype={"folds": str})
    assert list(table.columns) == ["model", *RESULT_COLUMNS]
    first, second, third, fourth = table.to_dict("records")
    assert [first[key] for key in ("value", "low", "high")] == [0.5, 0.4, 0.625]
    assert [second[key] for key in ("value", "std", "min", "max")] == [0.3, 0.1, 0.2, 0.4]
    place = {"model": "resnet", "on": "folds", "views": "tta", "metric": "macro_f1"}
    origin = {"folds": "5/5", "images": 30, "split_by": "group", "rendered": "no", "runs": "studies/small/resnet"}
    assert {**place, **origin}.items() <= first.items()
    assert math.isnan(second["low"])
    assert math.isnan(first["min"])
    published_columns = ("published", "published_std", "published_min", "published_max")
    assert [third[key] for key in published_columns] == [0.75, 0.5, 0.25, 1]
    assert all(math.isnan(each) for each in (third["value"], first["published"], fourth["published"]))
    assert (third["folds"], third["images"]) == ("0/5", 0)


# --- the data counted ------------------------------------------------------------------------------------------


def test_subjects_and_images_are_counted_as_the_competition_names_them(rendered_cnmc: Path) -> None:
    parts = [
        DataPart(part="Train", splits=("fold_0", "fold_1", "fold_2"), groups={"all": 47}, images={"all": 7272}),
        DataPart(part="Final", splits=("final",), groups={"all": 9}),
    ]
    found = count_composition(parts, Config(data=DataConfig(competition="cnmc", root=rendered_cnmc)))
    frame = get_competition("cnmc").read(rendered_cnmc).frame
    assert frame.group.str.contains("+", regex=False).any()  # subjects that share an image are one group
    training = frame[frame.split.str.startswith("fold_")]
    subjects = training.image_id.str.extract(r"UID_(H?\d+)_")[0]  # as the files name them
    own = {k: (subjects[training.label == k].nunique(), int((training.label == k).sum())) for k in (0, 1)}
    assert found.counts == (
        Count("Train", "hem", *own[0], None, None),
        Count("Train", "all", *own[1], 47, 7272),
        Count("Final", "all", None, None, 9, None),  # its labels are not public
        Count("Final", "unlabelled", None, 12, None, None),
    )
    assert found.remarks == ("RENDERED images: ours are what the project has drawn.",)


def test_where_the_input_is_missing_the_paper_stands_alone() -> None:
    part = DataPart(part="Prelim", splits=("prelim",), images={"hem": 648, "unlabelled": 1})
    found = count_composition([part], Config(data=DataConfig(competition="cnmc", root=Path("nowhere"))))
    assert found.counts == (
        Count("Prelim", "hem", None, None, None, 648),
        Count("Prelim", "unlabelled", None, None, None, 1),
    )
    assert found.remarks[0].startswith("Ours are not counted, the input is missing: nowhere: the input folder does")
    drawn = DataConfig(competition="cnmc", root=Path("later"), render=RenderSpec())
    assert count_composition([part], Config(data=drawn)).remarks == (
        "Ours are not counted, the input is missing: later: still to be rendered",
    )
    assert not Path("later").exists()


def test_groups_that_are_no_patients_are_not_counted(tmp_path: Path) -> None:
    folder = tmp_path / "acevedo" / "basophil"
    folder.mkdir(parents=True)
    (folder / "BA_1.jpg").write_bytes(b"x")
    part = DataPart(part="All", splits=("acevedo",), images={"BA": 1218})
    found = count_composition([part], Config(data=DataConfig(competition="acevedo", root=tmp_path / "acevedo")))
    assert found.counts == (Count("All", "BA", None, 1, None, 1218),)


def test_the_data_are_a_table_with_the_papers_numbers() -> None:
    counts = (Count("Train", "all", 1047, 7272, 47, 7272), Count("Final", "hem", None, None, 8, None))
    results = Results(study(), [row("resnet", {"macro_f1": Value(0.5)})], [], Composition(counts, ("So it is.",)))
    text = to_markdown(results)
    assert "## Data\n\n" in text
    assert table_of(text, 1) == [
        ["part", "class", "subjects", "paper", "images", "paper"],
        ["Train", "all", "1,047", "47", "7,272", "7,272"],
        ["Final", "hem", "-", "8", "-", "-"],
    ]
    assert text.endswith("the paper's as published. So it is.\n")
