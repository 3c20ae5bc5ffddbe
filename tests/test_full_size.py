"""The benchmark of everything around training: every step is measured, on the images that there are."""

from pathlib import Path

import pandas as pd
import pytest

from leukofold.benchmarks.full_size import full_size, full_size_config
from leukofold.benchmarks.measuring import Report
from leukofold.competitions import get_competition

OWN, TEST = 120, 51  # 16,477 test images to 38,535 labelled ones


def test_every_step_is_measured_in_the_order_of_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report("full_size", "")
    full_size(report, OWN)
    folder = tmp_path / "cache" / "benchmark" / str(OWN)
    acevedo = pd.read_csv(folder / "acevedo" / "rendered_truth.csv")
    external = int(acevedo.given_label.isin(get_competition("wbcbench").class_names).sum()) + 1  # of CellWiki
    everything, labelled = OWN + external + TEST, OWN + external
    measured = [(one["name"].strip(), one["images"]) for one in report.results if "images" in one]
    assert measured == [
        ("reading the tables", everything),
        ("decoding and hashing every image", everything),
        ("again", everything),
        ("duplicate check", everything),
        ("again", everything),
        ("5 folds by group", labelled),
        ("image cache at 224 pixels, all", everything),
        ("again", everything),
        ("all until a training's first step, kept", everything),
        ("writing 9 runs", everything),
        ("blend: loading 9 runs", everything),
        ("blend: mean of logits, submission", everything),
        ("blend: all methods judged, submission", everything),
        ("label analysis: loading", labelled),
        ("label analysis", labelled),
        ("label analysis: lists and sheets", labelled),
        ("outliers among embeddings of 768 numbers", OWN),
    ]
    assert all(one["seconds"] > 0 for one in report.results if "images" in one)
    counted = {key: value for one in report.results if "images" not in one for key, value in one.items()}
    assert counted["pairs"] == 0
    assert counted["issues"] > 0
    assert counted["pictures"] >= 3  # confusion, overview and a pair
    printed = capsys.readouterr().out
    assert printed.startswith(f"{OWN} + {external} external labelled images and {TEST} test images, all RENDERED")
    assert sorted(path.name for path in folder.parent.iterdir()) == [str(OWN)]  # only the images are kept


def test_at_full_size_the_images_are_those_of_the_published_data() -> None:
    data = full_size_config(38_535).data.model_dump(mode="json", exclude_defaults=True)
    assert data == {
        "root": "cache/benchmark/wbcbench",
        "render": {"images": 38_535, "test_images": 16_477, "patients": 345},
        "external": {
            "acevedo": {"root": "cache/benchmark/acevedo", "render": {"images": 13_615}},
            "cellwiki": {"root": "cache/benchmark/cellwiki", "render": {"images": 18}},
        },
    }
