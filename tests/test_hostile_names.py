"""A report of data whose every name is markup, or pretends to be: on the page names are text and nothing else."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from leukofold.blending.loading import load_run
from leukofold.competitions import multimodal as reader
from leukofold.competitions.multimodal import MultimodalData
from leukofold.config import Config
from leukofold.gradcam import UnknownBackboneError
from leukofold.report import page as report_page
from leukofold.report.page import write_report
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

if TYPE_CHECKING:
    from tests.conftest import MultimodalInput

CLASSES = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(2)>",
    "' onmouseover='alert(3)",
    "</td></table><svg onload=alert(4)>",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} $x^2$",
)  # fmt: skip
MODALITIES = ("<iframe src=//x>", "--> <!-- \" '", "javascript:alert(5)")
CELL = '"><img src=x onerror=alert({})>'
PATIENT = "</pre><script src=x>{}</script>"
ROOT = "<base href=x> & 'input'"
NOTE = "Grad-CAM cannot look into <img src=x onerror=alert(7)>"
RUN = "</title><script>alert(6)</script>"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text outside of the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.comments: list[str] = []
        self.text = ""
        self._skipped = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._skipped = tag if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        self._skipped = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skipped else data


@pytest.fixture(scope="module")
def hostile(
    drawn_multimodal: MultimodalInput, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Elements]]:
    """The folder of a report of cells, classes, patients, images, runs and folders with such names; and its page."""

    def refuse(*_: object) -> Iterator[tuple[str, Figure]]:
        raise UnknownBackboneError(NOTE)

    work = tmp_path_factory.mktemp("hostile")
    root = work / ROOT
    shutil.copytree(drawn_multimodal.root, root)
    table = pd.read_csv(root / "cells.csv", dtype=str)
    own = dict(zip(reader.CLASS_NAMES, CLASSES, strict=True))
    renamed = table.rename(columns=dict(zip(("Fluorescent", "Color1", "Color2"), MODALITIES, strict=True))).assign(
        cell_id=[CELL.format(number) for number in range(len(table))],
        label=table.label.map(own),
        patient=table.patient.map(PATIENT.format),
    )
    renamed.head(30).to_csv(root / "cells.csv", index=False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("leukofold.report.page.draw_heat", refuse)
        patched.setattr(reader, "CLASS_NAMES", CLASSES)
        patched.setattr(MultimodalData, "class_names", CLASSES)
        patched.setattr(MultimodalData, "published_counts", {})
        config = Config.model_validate(
            {
                "data": {"competition": "multimodal", "root": root, "cache": work / "cache", "workers": 0},
                "folds": {"count": 2},
                "image": {"size": 32},
                "model": {"backbone": "test_resnet", "pretrained": False},
                "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0},
                "inference": {"tta": "none"},
            }
        )
        run = RunFolder(RUN, work / "oof")
        torch.set_num_threads(1)
        train_folds(config, run, range(2), resume=False, debug=False)
        write_report([load_run(run)], work / "report")
        yield work / "report", Elements((work / "report" / "report.html").read_text(encoding="utf-8"))


def test_every_element_of_the_page_is_one_of_the_template(hostile: tuple[Path, Elements]) -> None:
    _, page = hostile
    template = Elements((Path(report_page.__file__).parent / "page.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in template.found}
    assert {name for _, attributes in page.found for name in attributes} <= {
        "lang", "charset", "name", "content", "http-equiv", "class", "id", "aria-label", "href", "src", "alt", "style",
    }  # fmt: skip
    assert not {tag for tag, _ in page.found} & {"script", "svg", "iframe", "object", "embed", "base", "form", "link"}
    assert page.comments == []


def test_what_the_page_refers_to_is_its_own(hostile: tuple[Path, Elements]) -> None:
    folder, page = hostile
    figures = {path.read_bytes() for path in (folder / "figures").glob("*.png")}
    sources = [attributes["src"] or "" for tag, attributes in page.found if tag == "img"]
    assert {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources} == figures
    assert all((attributes["href"] or "").startswith("#") for tag, attributes in page.found if tag == "a")
    assert sum(tag == "h1" for tag, _ in page.found) == sum(tag == "title" for tag, _ in page.found) == 1


def test_names_stand_on_the_page_letter_by_letter(hostile: tuple[Path, Elements]) -> None:
    _, page = hostile
    for name in (*CLASSES, RUN, ROOT, NOTE):
        assert page.text.count(name) > 0


def test_names_in_the_numbers_are_those_that_were_given(hostile: tuple[Path, Elements]) -> None:
    folder, _ = hostile
    noted = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert noted["class_names"] == list(CLASSES)
    assert {row["group"] for row in noted["groups"]} == {PATIENT.format(f"p{number}") for number in range(5)}
