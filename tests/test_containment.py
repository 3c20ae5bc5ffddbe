"""Files that a list names stay in the competition's folder, whatever the list or a link says; a user's links work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from leukofold.competitions import get_competition
from leukofold.containment import leading_out, need_contained, shown, why_outside
from leukofold.domains import images_below, read_domain
from leukofold.errors import UserError
from leukofold.external.blood8 import SOURCE as BLOOD8
from tests.conftest import JPEG

if TYPE_CHECKING:
    from tests.conftest import CnmcInput, MultimodalInput, WbcInput

MULTIMODAL = get_competition("multimodal")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a/b.png", None), ("a..b/c...png", None), ("a b/\u00e9.png", None), ("./a.png", None),
        ("../a.png", "a way up (..)"), ("a/../b.png", "a way up (..)"), ("a/..", "a way up (..)"),
        ("/etc/passwd", "an absolute path"), ("//host/a.png", "an absolute path"), ("C:/a.png", "an absolute path"),
        ("c:a.png", "an absolute path"), ("\\\\host\\a.png", "an absolute path"), ("a\\b.png", "a backslash"),
        ("..\\a.png", "a backslash"), ("a\0.png", "a control character"), ("a\n.png", "a control character"),
        ("a\u202egpj.exe", "a control character"),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_told_by_their_spelling(name: str, fault: str | None) -> None:
    assert why_outside(name) == fault


def test_what_messages_show_of_foreign_text_is_one_plain_line() -> None:
    assert shown("caf\u00e9 'a'") == "caf\u00e9 'a'"
    assert shown("a\n\x1b[2J\0\udc80") == "a\\n\\x1b[2J\\x00\\udc80"
    assert shown("x" * 100, 10) == "x" * 10 + "..."


def test_links_that_lead_out_are_found_and_those_that_stay_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk" / "root" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "rooted").mkdir()
    root = tmp_path / "root"
    root.symlink_to(tmp_path / "disk" / "root")  # the user's, to another disk
    (tmp_path / "disk" / "root" / "a" / "1.png").write_bytes(b"x")
    (tmp_path / "disk" / "rooted" / "1.png").write_bytes(b"x")
    (root / "within").symlink_to("a")
    (root / "a" / "2.png").symlink_to("1.png")
    (root / "out").symlink_to(tmp_path / "disk" / "rooted")  # its name begins as the root's does
    (root / "a" / "3.png").symlink_to(tmp_path / "disk" / "rooted" / "1.png")
    (root / "a" / "4.png").symlink_to(tmp_path / "nowhere.png")
    (root / "round").symlink_to("round")
    files = [
        f"{root}/{name}"
        for name in (
            "a/1.png",
            "within/1.png",
            "a/2.png",
            "out/1.png",
            "a/3.png",
            "a/4.png",
            "round/1.png",
            "gone/1.png",
        )
    ]
    assert leading_out(root, files) == [files[3], files[4], files[5]]
    monkeypatch.chdir(root)
    assert leading_out(Path(), ["a/1.png", "out/1.png", "1.png"]) == ["out/1.png"]
    with pytest.raises(
        UserError, match=r"l\.csv: two: a link leads .*a/3\.png out of .*root \(1 in all\); put the files"
    ):
        need_contained(Path("l.csv"), root, ["one", "two"], ["a/1.png", "a/3.png"])


@pytest.mark.parametrize("part", ["phase2/eval/03000002.jpg", "phase2/eval", "phase2"])
def test_an_image_of_wbcbench_that_a_link_leads_out_is_refused_by_id(wbc: WbcInput, tmp_path: Path, part: str) -> None:
    competition = get_competition("wbcbench")
    root = wbc.write()
    shutil.move(root / part, tmp_path / "elsewhere")
    (root / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"0[23]00000\d\.jpg: a link leads .*{part}.* out of {root} "):
        competition.scan(root)


def test_the_folder_of_wbcbench_may_be_a_link_and_hold_links_that_stay(wbc: WbcInput, tmp_path: Path) -> None:
    competition = get_competition("wbcbench")
    before = competition.read(wbc.write()).fingerprint()
    shutil.move(wbc.root, tmp_path / "disk")
    wbc.root.symlink_to(tmp_path / "disk")
    shutil.move(tmp_path / "disk" / "phase1", tmp_path / "disk" / "first")
    (tmp_path / "disk" / "phase1").symlink_to("first")
    assert competition.read(wbc.root).fingerprint() == before


@pytest.mark.parametrize("name", ["../3.bmp", "/etc/passwd", "..\\3.bmp", "C:\\3.bmp", "a/../../3.bmp"])
def test_a_preliminary_image_of_c_nmc_cannot_be_named_elsewhere(cnmc_input: CnmcInput, name: str) -> None:
    root = cnmc_input.write()
    (root / cnmc_input.prelim).parent.joinpath("3.bmp").write_bytes(b"x")
    cnmc_input.prelim_list([f"UID_57_29_1_all.bmp,{name},1"])
    with pytest.raises(UserError, match=r"labels\.csv: UID_57_29_1_all\.bmp: '.*' has a.*; write the path below"):
        get_competition("cnmc").scan(root)


def test_a_preliminary_image_of_c_nmc_cannot_be_a_link_elsewhere_but_a_training_image_can(
    cnmc_input: CnmcInput, tmp_path: Path
) -> None:
    root = cnmc_input.write()
    for place in ("own.bmp", "other.bmp"):
        (tmp_path / place).write_bytes(place.encode())
    training = root / cnmc_input.training / "fold_0" / "all" / "UID_3_1_1_all.bmp"
    training.symlink_to(tmp_path / "own.bmp")
    assert str(training) in set(get_competition("cnmc").read(root).frame.path)
    (root / cnmc_input.prelim / "1.bmp").unlink()
    (root / cnmc_input.prelim / "1.bmp").symlink_to(tmp_path / "other.bmp")
    with pytest.raises(UserError, match=r"labels\.csv: UID_57_29_1_all\.bmp: a link leads .*/1\.bmp out of"):
        get_competition("cnmc").scan(root)


@pytest.mark.parametrize("given", ["../stolen.png", "{outside}/stolen.png", "Color1\\stolen.png", "C:/stolen.png"])
def test_a_list_of_several_images_cannot_name_files_elsewhere(multimodal: MultimodalInput, given: str) -> None:
    (multimodal.root.parent / "stolen.png").write_bytes(JPEG)
    path = multimodal.root / "cells.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[3, "Color1"] = given.format(outside=multimodal.root.parent)
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match=r"cells\.csv: c3: '.+' has a.*; write the path below"):
        MULTIMODAL.scan(multimodal.root)


def test_a_list_of_several_images_is_not_led_out_by_links(multimodal: MultimodalInput, tmp_path: Path) -> None:
    root = multimodal.root
    before = MULTIMODAL.read(root).fingerprint()
    shutil.move(root / "Color1", tmp_path / "Color1")
    (root / "Color1").symlink_to(tmp_path / "Color1")
    with pytest.raises(UserError, match=r"cells\.csv: c0: a link leads .*/Color1/.* out of .* \(60 in all\)"):
        MULTIMODAL.scan(root)
    (root / "cells.csv").rename(tmp_path / "cells.csv")  # without a list, links are the user's own
    assert len(MULTIMODAL.read(root).frame) == multimodal.cells
    (tmp_path / "cells.csv").rename(root / "cells.csv")
    (root / "Color1").unlink()
    shutil.move(tmp_path / "Color1", root / "first")
    (root / "Color1").symlink_to("first")
    assert MULTIMODAL.read(root).fingerprint() == before


# --- folders without a list ---------------------------------------------------------------------


def test_links_in_folders_of_classes_are_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.jpg").write_bytes(JPEG)
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "LY").symlink_to(tmp_path / "disk")
    assert read_domain("clinic", tmp_path / "clinic", ("LY", "MO"), {}).image_id.tolist() == ["clinic/LY/1.jpg"]


def test_a_link_that_leads_back_is_refused_and_not_followed_round(tmp_path: Path) -> None:
    folder = tmp_path / "blood8" / "basophil"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(JPEG)
    (folder / "again").symlink_to(tmp_path / "blood8")
    with pytest.raises(UserError, match=r"basophil/again: a link to a folder that it lies in; remove it"):
        list(images_below(tmp_path / "blood8"))
    with pytest.raises(UserError, match=r"basophil/again: a link to a folder that it lies in; remove it"):
        BLOOD8.scan(tmp_path / "blood8")
    train = tmp_path / "raabin" / "Train" / "Basophil"
    train.mkdir(parents=True)
    (tmp_path / "raabin" / "other").symlink_to("..")
    with pytest.raises(UserError, match=r"raabin/other: a link to a folder that it lies in; remove it"):
        get_competition("raabin").scan(tmp_path / "raabin")


@pytest.mark.parametrize("name", [b"a\nb.jpg", b"caf\xe9.jpg", b"a\x1b[2J.jpg"])
def test_a_file_name_that_no_list_could_hold_is_refused(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "root" / "basophil"
    folder.mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(JPEG)
    except OSError:
        pytest.skip("this file system takes no such name")
    for read in (lambda: list(images_below(tmp_path / "root")), lambda: BLOOD8.scan(tmp_path / "root")):
        with pytest.raises(UserError, match=r"the name '.*' is not plain text; give it another") as caught:
            read()
        assert str(caught.value).isprintable()
