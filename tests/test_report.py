"""Reports of small real runs: numbers, figures, what the page says and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn import metrics as sk

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import LoadedRun, load_run
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.gradcam import UnknownBackboneError
from leukofold.metrics import METRICS
from leukofold.reopening import reopen
from leukofold.report.cells import Cells, draw_heat
from leukofold.report.maps import MOST, draw_maps, map_rows
from leukofold.report.numbers import MEAN, Numbers
from leukofold.report.page import render_page, write_report
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

if TYPE_CHECKING:
    from tests.conftest import Commands, RunMaker

HOSTILE = "<script>alert('1')</script> & $x^2$"
FOLDS = 2

SECTIONS = {
    "data": "What was trained on",
    "scores": "Scores",
    "per-class": "Class by class",
    "confusion": "What is taken for what",
    "patients": "Patient by patient",
    "calibration": "How sure, how often right",
    "learning": "Learning curves",
    "errors": "Errors to look at",
    "issues": "Doubtful labels",
    "map": "Map of the cells",
    "heat": "Where the networks look",
    "cost": "What it cost",
    "origin": "Where it came from",
}


class Page(HTMLParser):
    """A page taken apart: what it refers to, its headings, figures, tables and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.headings: dict[str, str] = {}
        self.figures: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._heading = self._figure = self._captioned = ""
        self.captions: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = {name: value or "" for name, value in attrs}
        self.references += [given[name] for name in ("src", "href", "action", "data", "poster") if name in given]
        if tag == "h2":
            self._heading = given["id"]
            self.headings[self._heading] = ""
        elif tag == "figure":
            self._figure = given["id"]
        elif tag == "figcaption":
            self._captioned = self._figure
            self.captions[self._captioned] = ""
        elif tag == "img":
            self.figures[self._figure] = given["src"]
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2":
            self._heading = ""
        elif tag == "figcaption":
            self._captioned = ""
        elif tag == "table":
            self.tables[-1] = [[cell.strip() for cell in row] for row in self.tables[-1]]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._heading:
            self.headings[self._heading] += data
        if self._captioned:
            self.captions[self._captioned] += data
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data


def train(root: Path, name: str, competition: str, source: Path, **more: Any) -> None:
    """Trains a small run."""
    base: dict[str, dict[str, Any]] = {
        "data": {"competition": competition, "root": source, "cache": root / "cache", "workers": 0},
        "folds": {"count": FOLDS},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 2, "batch_size": 16, "ema_decay": 0},
        "optimizer": {"lr": 3e-3},
        "inference": {"tta": "none"},
    }
    config = Config.model_validate({key: {**base.get(key, {}), **more.get(key, {})} for key in {*base, *more}})
    train_folds(config, RunFolder(name, root / "oof"), range(FOLDS), resume=False, debug=False)


@pytest.fixture(scope="module")
def trained(rendered_wbcbench: Path, rendered_cnmc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a CNN, a transformer and half a run of WBCBench lie, and three of C-NMC; read only."""
    root = tmp_path_factory.mktemp("trained")
    external = {"acevedo": {"root": root / "acevedo", "render": {"images": 24}}}
    train(root, HOSTILE, "wbcbench", rendered_wbcbench, data={"external": external})
    train(root, "vit", "wbcbench", rendered_wbcbench, data={"external": external}, model={"backbone": "test_vit2"})
    shutil.copytree(root / "oof" / "vit", root / "oof" / "half", ignore=shutil.ignore_patterns("fold0"))
    train(root, "two", "cnmc", rendered_cnmc)
    train(root, "one", "cnmc", rendered_cnmc, model={"one_logit": True})
    return root


def runs_of(trained: Path, *names: str) -> list[LoadedRun]:
    return [load_run(RunFolder(name, trained / "oof")) for name in names]


Report = tuple[Path, Page, Numbers]


def report(trained: Path, folder: Path, *names: str) -> Report:
    torch.set_num_threads(1)
    numbers, _ = write_report(runs_of(trained, *names), folder)
    return folder, Page((folder / "report.html").read_text(encoding="utf-8")), numbers


@pytest.fixture(scope="module")
def wbc_report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(trained, tmp_path_factory.mktemp("wbc") / "report", HOSTILE, "vit")


@pytest.fixture(scope="module")
def cnmc_report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(trained, tmp_path_factory.mktemp("cnmc") / "report", "two", "one")


def test_page_has_every_section_in_order_and_a_table_of_contents(wbc_report: Report) -> None:
    _, page, _ = wbc_report
    assert page.headings == SECTIONS
    assert list(page.headings) == list(SECTIONS)
    assert [link[1:] for link in page.references if link.startswith("#")] == list(SECTIONS)


def test_page_needs_no_network_no_script_and_no_other_file(wbc_report: Report, cnmc_report: Report) -> None:
    for folder, page, _ in (wbc_report, cnmc_report):
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.references)
        assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
        html = (folder / "report.html").read_text(encoding="utf-8")
        style = html[html.index("<style>") : html.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style
        assert "default-src 'none'" in html


def test_figures_on_the_page_are_the_files_beside_it(wbc_report: Report, cnmc_report: Report) -> None:
    common = {
        "fold_spread", "classes", "confusion_counts", "confusion_shares", "groups", "reliability", "learning_curves",
        "surest_errors", "hardest_classes", "label_issues", "map_classes", "heat_right", "heat_wrong",
    }  # fmt: skip
    for (folder, page, _), own in ((wbc_report, {"map_sources"}), (cnmc_report, {"map_splits"})):
        files = {path.stem: path.read_bytes() for path in (folder / "figures").iterdir()}
        inlined = {name: base64.b64decode(uri.partition(",")[2]) for name, uri in page.figures.items()}
        assert inlined == files
        assert set(files) >= common | own
        assert all(content.startswith(b"\x89PNG") for content in files.values())
        assert all(len(page.captions[name].split()) > 8 for name in files)


def test_names_from_outside_are_text_and_never_markup(wbc_report: Report) -> None:
    folder, page, _ = wbc_report
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")
    assert page.text.count(HOSTILE) > 5


def test_configurations_paths_and_notes_are_escaped(trained: Path, wbc_report: Report) -> None:
    _, _, numbers = wbc_report
    evil = "</pre><img src=x onerror=alert(1)>"
    member = {
        "name": evil,
        "digest": evil,
        "made": [{"folds": [0], "commit": evil, "versions": evil}],
        "config": {**reopen(runs_of(trained, "vit")[0]).config.resolved(), "evil": evil},
    }
    facts = {
        "title": evil, "class_names": [evil, evil], "missing_folds": [], "trained_folds": [0], "rendered": False,
        "debug": True, "split_by": "image", "images": 1, "groups": 1, "has_patients": True, "external": {evil: 1},
        "labelled": 2, "labelled_groups": 1, "leaking": [evil],
        "members": [member], "issues": 1, "judged": 1, "pairs": [(evil, evil)], "map_cells": 1, "map_fold": 0,
        "input": evil, "data_fingerprint": evil,
    }  # fmt: skip
    html = render_page(
        facts=facts,
        numbers=numbers,
        titles=dict.fromkeys([*METRICS, "macro_auc"], evil),
        pictures={},
        notes={"heat": evil},
    )
    page = Page(html)
    assert "img" not in page.tags
    assert page.text.count(evil) > 10


def test_summary_has_scikit_learns_numbers_for_every_run_and_their_mean(trained: Path, wbc_report: Report) -> None:
    folder, page, _ = wbc_report
    runs = runs_of(trained, HOSTILE, "vit")
    logits = [run.oof.logits for run in runs]
    assert runs[0].oof.image_id.tolist() == runs[1].oof.image_id.tolist()
    own, labels = ~runs[0].oof.is_external, runs[0].oof.label
    assert labels is not None
    assert 0 < own.sum() < len(own)
    noted = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    summary = next(table for table in page.tables if "macro\u2011F1" in table[0])
    assert [row[0] for row in summary[1:]] == [HOSTILE, "vit", MEAN]
    for row, found, each in zip(summary[1:], noted["scores"], [*logits, np.mean(logits, axis=0)], strict=True):
        predicted = each[own].argmax(axis=1)
        macro_f1 = sk.f1_score(labels[own], predicted, labels=range(13), average="macro", zero_division=0)
        assert found["macro_f1"]["value"] == pytest.approx(macro_f1, abs=1e-12)
        assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels[own], predicted))
        assert found["macro_f1"]["low"] <= macro_f1 <= found["macro_f1"]["high"]
        assert row[1].startswith(f"{macro_f1:.3f}")
        for fold in range(FOLDS):
            rows = own & (runs[0].folds == fold)
            expected = sk.f1_score(
                labels[rows], each[rows].argmax(axis=1), labels=range(13), average="macro", zero_division=0
            )
            assert found["folds"][str(fold)] == pytest.approx(expected)
    mean = np.mean(logits, axis=0)[own].argmax(axis=1)
    assert noted["confusion"] == sk.confusion_matrix(labels[own], mean, labels=range(13)).tolist()
    recall = sk.recall_score(labels[own], mean, labels=range(13), average=None, zero_division=np.nan)
    assert [row["recall"] for row in noted["classes"]] == pytest.approx([None if np.isnan(r) else r for r in recall])


def test_patients_have_their_own_accuracy(trained: Path, cnmc_report: Report) -> None:
    folder, page, _ = cnmc_report
    runs = runs_of(trained, "two", "one")
    mean = blend_runs(runs).oof
    right = pd.Series(mean.logits.argmax(axis=1) == mean.label).groupby(mean.group).mean()
    noted = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {row["group"]: row["accuracy"] for row in noted["groups"]} == pytest.approx(right.to_dict())
    assert noted["groups"] == sorted(noted["groups"], key=lambda row: row["accuracy"])
    assert "subject accuracy" in page.text


def test_runs_of_one_and_of_two_logits_stand_side_by_side(trained: Path, cnmc_report: Report) -> None:
    folder, page, numbers = cnmc_report
    one = runs_of(trained, "one")[0]
    assert (one.oof.logits[:, 0] == 0).all()
    assert [each.name for each in numbers.scores] == ["two", "one", MEAN]
    summary = next(table for table in page.tables if "weighted F1" in table[0])
    assert "AUC" in summary[0]  # of two classes it is no mean
    noted = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert one.oof.label is not None
    auc = sk.roc_auc_score(one.oof.label, one.oof.logits[:, 1])
    assert noted["scores"][1]["macro_auc"]["value"] == pytest.approx(auc)
    f1 = sk.f1_score(one.oof.label, one.oof.logits.argmax(axis=1), average="weighted")
    assert noted["scores"][1]["weighted_f1"]["value"] == pytest.approx(f1)
    assert ", one logit" in page.text


def test_cost_is_what_the_trainings_noted(trained: Path, wbc_report: Report) -> None:
    _, page, numbers = wbc_report
    costs = numbers.costs.set_index("run")
    history = pd.concat([pd.read_csv(trained / "oof" / "vit" / f"fold{k}" / "history.csv") for k in range(FOLDS)])
    assert costs.epochs["vit"] == len(history) == 4
    assert costs.seconds["vit"] == pytest.approx(history.seconds.sum())
    assert costs.images_per_second["vit"] == pytest.approx(history.images_per_second.mean())
    network = reopen(runs_of(trained, "vit")[0]).network(0, torch.device("cpu"))
    assert costs.parameters["vit"] == sum(weights.numel() for weights in network.parameters())
    assert any("test_vit2" in row for table in page.tables for row in table)


def test_page_tells_rendered_images_external_data_and_the_configuration(wbc_report: Report) -> None:
    _, page, _ = wbc_report
    assert "Rendered images, drawn by this project." in page.text
    assert "Not trained yet" not in page.text
    assert "A debug run" not in page.text
    assert re.search(r"acevedo\w* \(\d+\s+images\); trained on as well, but counted in no score", page.text)
    assert "backbone: test_vit2" in page.text


@pytest.fixture(scope="module")
def half_report(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of a run with one of two folds, whose backbone Grad-CAM does not know."""

    def refuse(*_: object) -> Iterator[tuple[str, Figure]]:
        raise UnknownBackboneError("Grad-CAM cannot look into <Net>")

    folder = tmp_path_factory.mktemp("half") / "report"
    (folder / "figures").mkdir(parents=True)
    for name in ("heat_right", "of_the_user"):
        (folder / "figures" / f"{name}.png").write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("leukofold.report.page.draw_heat", refuse)
        return report(trained, folder, "half")


def test_one_fold_is_reported_and_what_is_missing_is_said(trained: Path, half_report: Report) -> None:
    folder, page, numbers = half_report
    assert page.headings == SECTIONS
    assert "Not trained yet: fold 0." in page.text
    half, whole = runs_of(trained, "half", "vit")
    images, scored = ((~run.oof.is_external).sum() for run in (whole, half))
    patients = len(set(whole.oof.group[~whole.oof.is_external]))
    assert re.search(
        rf"{images} labelled images of {patients} patients in 13 classes;\s+scored here: {scored}", page.text
    )
    assert re.search(rf"acevedo\w* \({whole.oof.is_external.sum()}\s+images\)", page.text)
    assert "With one fold only, its effect cannot be judged honestly." in page.text
    assert [each.name for each in numbers.scores] == ["half"]
    noted = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert noted["missing_folds"] == [0]
    assert noted["calibration"]["ece_after"] is None


def test_a_backbone_that_cannot_be_looked_into_costs_its_pictures_only(half_report: Report) -> None:
    folder, page, _ = half_report
    assert "Grad-CAM cannot look into <Net>." in page.text
    assert not (folder / "figures" / "heat_right.png").exists()  # of an earlier report
    assert (folder / "figures" / "of_the_user.png").exists()
    assert "heat_right" not in page.figures
    assert set(page.figures) >= {"classes", "map_classes", "surest_errors"}


def test_heat_is_shown_once_for_every_kind_of_network(trained: Path) -> None:
    runs = runs_of(trained, "two", "one")
    reopened = [reopen(run) for run in runs]
    figures = dict(draw_heat(Cells(blend_runs(runs), reopened[0]), reopened))
    texts = [text.get_text() for text in figures["heat_wrong"].axes[0].texts]
    assert sum("two" in text for text in texts) == 2  # what it was taken for, and the given label
    assert not any(text.endswith("one") for text in texts)


def test_sheets_show_the_surest_errors_of_the_competitions_images(trained: Path) -> None:
    runs = runs_of(trained, HOSTILE, "vit")
    blend = blend_runs(runs)
    cells = Cells(blend, reopen(runs[0]))
    probabilities = torch.from_numpy(np.mean([run.oof.logits for run in runs], axis=0)).softmax(dim=1).numpy()
    wrong = np.flatnonzero((probabilities.argmax(axis=1) != blend.oof.label) & ~blend.oof.is_external)
    expected = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
    assert cells.wrong[:8].tolist() == expected[:8].tolist()
    first = cells.sheet_cell(int(expected[0]))
    assert blend.oof.label is not None
    given, taken = (blend.oof.class_names[k] for k in (blend.oof.label[expected[0]], cells.predicted[expected[0]]))
    assert first.caption.split("\n")[-1] == f"{given}\u2192{taken} {probabilities[expected[0]].max():.2f}"
    assert Path(str(blend.oof.image_id[expected[0]])).stem == "".join(first.caption.split("\n")[:-1])
    assert len(set(cells.right) | set(cells.wrong)) == (~blend.oof.is_external).sum()


def test_a_map_of_many_cells_takes_the_same_share_of_every_class(trained: Path) -> None:
    reopened = reopen(runs_of(trained, "vit")[0])
    small = map_rows(reopened)
    assert small.tolist() == np.flatnonzero(reopened.run.folds == 0).tolist()
    times = 8 * MOST // len(reopened.cells)
    cells = pd.concat([reopened.cells] * times, ignore_index=True)
    run = LoadedRun(**{**vars(reopened.run), "folds": np.zeros(len(cells), dtype=np.int64)})
    rows = map_rows(type(reopened)(**{**vars(reopened), "cells": cells, "run": run}))
    assert len(rows) == len(set(rows)) == MOST
    share = cells.label[rows].value_counts(normalize=True).sort_index()
    assert share.to_numpy() == pytest.approx(cells.label.value_counts(normalize=True).sort_index().to_numpy(), abs=2e-3)


def test_the_command_reports_and_says_where(trained: Path, commands: Commands) -> None:
    shutil.copytree(trained / "oof" / "one", commands.cwd / "oof" / "one")
    said = commands.succeed("report.py", "--run", "one")
    assert "RENDERED images" in said
    assert "oof/one/report/report.html" in said
    value = json.loads((commands.cwd / "oof/one/report/metrics.json").read_text())["scores"][0]["weighted_f1"]["value"]
    assert f"one  {value:.4f}" in said


def test_the_command_refuses_runs_of_two_competitions_and_runs_that_are_not_there(
    commands: Commands, wbc_runs: RunMaker, cnmc_runs: RunMaker
) -> None:
    wbc_runs.make("wbc")
    cnmc_runs.make("cnmc")
    line = commands.refused("report.py", "--run", "wbc", "--run", "cnmc")
    assert "wbcbench and cnmc" in line
    assert "one competition" in line
    assert "no run with a complete fold" in commands.refused("report.py", "--run", "nothing")


def test_runs_that_do_not_belong_together_are_refused_by_name(tmp_path: Path, wbc_runs: RunMaker) -> None:
    plain = wbc_runs.make("plain").folder
    names = reversed(load_run(plain).metadata["class_names"])
    others = {
        "split into folds": wbc_runs.make("shifted", shift=1),
        "class order": wbc_runs.make("turned", class_names=list(names)),
        "lacks fold 2": wbc_runs.make("less", trained=[0, 1]),
    }
    for what, other in others.items():
        with pytest.raises(UserError, match=what) as refused:
            write_report([load_run(plain), load_run(other.folder)], tmp_path / "report")
        assert other.folder.name in str(refused.value)
    assert not (tmp_path / "report").exists()


def test_logits_that_are_not_finite_and_input_that_is_gone_are_refused(tmp_path: Path, wbc_runs: RunMaker) -> None:
    made = wbc_runs.make("run").folder
    with pytest.raises(UserError, match="the input folder does not exist"):
        write_report([load_run(made)], tmp_path / "report")
    path = made.fold(1).path / "oof.npz"
    arrays = dict(np.load(path))
    arrays["logits"][0, 0] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"fold1/oof.npz: logits of 1 images are not finite"):
        load_run(made)
    assert not (tmp_path / "report").exists()


def test_networks_that_are_gone_end_the_report(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained / "oof" / "one", tmp_path / "one")
    (tmp_path / "one" / "fold1" / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"fold1/best.safetensors: not the weights of its run"):
        write_report([load_run(RunFolder("one", tmp_path))], tmp_path / "report")
    assert not (tmp_path / "report" / "report.html").exists()


def test_a_network_that_tells_no_cells_apart_has_no_map(trained: Path) -> None:
    reopened = reopen(runs_of(trained, "one")[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "leukofold.report.maps.fold_embeddings", lambda *_: np.zeros((len(reopened.cells), 8), np.float32)
        )
        assert list(draw_maps(reopened)) == []
