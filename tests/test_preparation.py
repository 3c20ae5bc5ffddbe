"""Checking and fetching input folders, through the library and through the command lines."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leukofold import kaggle
from leukofold.competitions import get_competition
from leukofold.errors import UserError
from leukofold.preparation import describe, fetch_input, inspect_input

if TYPE_CHECKING:
    from tests.conftest import CnmcInput, Commands, WbcInput

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "scripts").glob("*.py"))
HEAVY = {"torch", "torchvision", "timm", "accelerate", "albumentations", "pandas", "sklearn", "cv2", "numpy"}
FETCH_WBC = "competitions download -c wbc-bench-2026 -p"


# --- inspecting ---------------------------------------------------------------------------------


def test_found_counts_stand_beside_the_published_ones(wbc: WbcInput) -> None:
    report = inspect_input(get_competition("wbcbench"), wbc.write(), progress=False)
    counts = report.counts
    there = counts[counts.found > 0]
    assert dict(zip(there["split"] + " " + there["class"], there.found, strict=True)) == {
        "phase1_train SNE": 1, "phase1_train LY": 1, "phase1_train BL": 1, "phase2_train BA": 2, "phase2_train LY": 1,
        "phase2_train SNE": 1, "phase2_eval EO": 1, "phase2_eval MO": 1, "phase2_test unlabelled": 3,
    }  # fmt: skip
    assert counts.groupby("split").published.sum().to_dict() == {
        "phase1_train": 8288, "phase2_train": 24897, "phase2_eval": 5350, "phase2_test": 16477,
    }  # fmt: skip
    assert counts.published[(counts["split"] == "phase1_train") & (counts["class"] == "SNE")].tolist() == [3913]
    assert report.groups == {"phase1_train": 2, "phase2_train": 2, "phase2_eval": 1}
    assert (report.missing, report.unreadable) == ([], [])
    assert len(report.differing) == len(counts)


def test_the_published_counts_of_c_nmc_are_those_of_its_paper(cnmc_input: CnmcInput) -> None:
    root = cnmc_input.write(finals=3)
    for name in ("UID_1_1_1_all.bmp", "UID_H2_1_1_hem.bmp"):
        cnmc_input.train(int("H2" in name), name)
    report = inspect_input(get_competition("cnmc"), root, progress=False)
    counts = report.counts
    published = {"all": 7272 + 1219, "hem": 3389 + 648, "unlabelled": 2586}
    assert counts.groupby("class").published.sum().to_dict() == published
    assert counts.found[counts["split"] == "final"].tolist() == [3]
    prelim = [f"{root}/{cnmc_input.prelim}/{number}.bmp" for number in (1, 2)]
    assert [fault.split(":")[0] for fault in report.unreadable] == prelim


def test_equal_counts_do_not_differ(wbc: WbcInput, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = get_competition("wbcbench")
    split = {"phase1_train": {"SNE": 1, "LY": 1, "BL": 1}, "phase2_train": {"BA": 2, "LY": 1, "SNE": 1}}
    rest = {"phase2_eval": {"EO": 1, "MO": 2}, "phase2_test": {"unlabelled": 3}}
    monkeypatch.setattr(type(competition), "published_counts", {**split, **rest})
    report = inspect_input(competition, wbc.write(), progress=False)
    assert report.differing.to_numpy().tolist() == [["phase2_eval", "MO", 1, 2]]
    text = describe(report)
    assert "phase1_train: 3 of 3 images of 2 groups\n    BL 1  LY 1  SNE 1" in text
    assert "phase2_eval: 2 of 3 images of 1 groups\n    EO 1  MO 1 (published 2)" in text
    assert "phase2_test: 3 of 3 images\n    unlabelled 3" in text


# --- prepare_input ------------------------------------------------------------------------------


def test_a_sound_folder_passes_and_is_left_alone(wbc: WbcInput, commands: Commands) -> None:
    wbc.write()
    before = commands.tree()
    said = commands.succeed("prepare_input.py", "--competition", "wbcbench")
    assert said.startswith("WBCBench 2026 in input/wbcbench\n")
    assert "phase2_test: 3 of 16477 images" in said
    assert "every image decodes; " in said
    assert commands.tree() == before


def test_every_missing_and_every_corrupt_image_is_named(wbc: WbcInput, commands: Commands) -> None:
    root = wbc.write()
    (root / "phase2/eval/03000002.jpg").unlink()
    (root / "phase1/01447013.jpg").write_bytes(b"")
    (root / "phase2/test/04000005.jpg").write_text("<html>", encoding="utf-8")
    error = commands.refused("prepare_input.py", "--competition", "wbcbench")
    assert "1 images missing and 2 unreadable" in error
    said = commands.run("prepare_input.py", "--competition", "wbcbench").stdout
    assert "  missing: input/wbcbench/phase2/eval/03000002.jpg\n" in said
    assert "  unreadable: input/wbcbench/phase1/01447013.jpg: the file is empty" in said
    assert "  unreadable: input/wbcbench/phase2/test/04000005.jpg: not an image" in said


@pytest.mark.parametrize("competition", ["wbcbench", "cnmc"])
def test_a_missing_folder_ends_on_one_line_that_says_what_to_do(commands: Commands, competition: str) -> None:
    error = commands.refused("prepare_input.py", "--competition", competition)
    assert f"input/{competition}: the input folder does not exist" in error
    assert f"--competition {competition} --download" in error


def test_an_unknown_competition_ends_on_one_line(commands: Commands) -> None:
    assert "did you mean 'wbcbench'?" in commands.refused("prepare_input.py", "--competition", "wbcbenhc")


# --- download -----------------------------------------------------------------------------------


def archive_of(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                opened.write(path, path.relative_to(folder))


def test_download_without_the_client_says_how_to_get_the_files_by_hand(commands: Commands) -> None:
    error = commands.refused("prepare_input.py", "--competition", "wbcbench", "--download")
    assert "the Kaggle client is not installed (pip install kaggle); by hand: " in error
    assert "input/README.md" in error


def test_download_without_credentials_says_where_they_belong(commands: Commands) -> None:
    commands.fake_kaggle()
    error = commands.refused("prepare_input.py", "--competition", "cnmc", "--download")
    assert "no credentials" in error
    assert "~/.kaggle/kaggle.json" in error
    assert commands.kaggle_calls() == []


def test_download_unpacks_removes_the_archive_and_checks_the_images(wbc: WbcInput, commands: Commands) -> None:
    wbc.root = commands.home / "served"
    archive_of(wbc.write(), commands.home / "served.zip")
    commands.sign_in()
    commands.fake_kaggle(f'mkdir -p "$6" && cp {commands.home}/served.zip "$6/wbc-bench-2026.zip"')
    said = commands.succeed("prepare_input.py", "--competition", "wbcbench", "--download")
    assert commands.kaggle_calls() == [f"{FETCH_WBC} input/wbcbench"]
    assert "unpacked wbc-bench-2026.zip into input/wbcbench" in said
    assert "every image decodes" in said
    files = {path for path, content in commands.tree().items() if content is not None}
    assert files == {f"input/wbcbench/{path.relative_to(wbc.root)}" for path in wbc.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["echo one; echo '403 - Forbidden' >&2; exit 1"], "competitions download failed: 403 - Forbidden; by hand"),
        (["exit 3"], "failed: exit code 3"),
        (["true"], "the Kaggle client brought no wbc-bench-2026.zip"),
        (['mkdir -p "$6" && echo broken > "$6/wbc-bench-2026.zip"'], r"wbc-bench-2026\.zip: not a sound zip archive"),
    ],
)
def test_a_download_that_fails_is_told_in_the_clients_words(commands: Commands, lines: list[str], said: str) -> None:
    commands.sign_in()
    commands.fake_kaggle(*lines)
    with pytest.raises(UserError, match=said):
        fetch_input(get_competition("wbcbench"), commands.cwd / "input")


def test_an_archive_damaged_inside_leaves_nothing_unpacked(wbc: WbcInput, commands: Commands) -> None:
    wbc.root = commands.home / "served"
    served = commands.home / "served.zip"
    archive_of(wbc.write(), served)
    content = bytearray(served.read_bytes())
    content[content.find(b"PK\x01\x02") - 40] ^= 255  # inside the last file
    served.write_bytes(content)
    commands.sign_in()
    commands.fake_kaggle(f'mkdir -p "$6" && cp {served} "$6/wbc-bench-2026.zip"')
    with pytest.raises(UserError, match=r"wbc-bench-2026\.zip: not a sound zip archive"):
        fetch_input(get_competition("wbcbench"), commands.cwd / "input")
    assert [path for path in commands.tree() if path.endswith((".jpg", ".csv"))] == []


def test_archives_that_lay_there_before_are_not_touched(wbc: WbcInput, commands: Commands) -> None:
    wbc.root = commands.home / "served"
    archive_of(wbc.write(), commands.home / "served.zip")
    mine = commands.cwd / "input" / "my-submissions.zip"
    mine.parent.mkdir()
    archive_of(wbc.root / "phase1", mine)
    commands.sign_in()
    commands.fake_kaggle(f'cp {commands.home}/served.zip "$6/wbc-bench-2026.zip"')
    assert fetch_input(get_competition("wbcbench"), commands.cwd / "input").name == "wbc-bench-2026.zip"
    assert mine.exists()


@pytest.mark.parametrize(
    "file",
    [".kaggle/kaggle.json", ".kaggle/access_token", ".config/kaggle/kaggle.json"],
    ids=["kaggle.json", "access_token", "the default of the client on Linux"],
)
def test_credentials_are_found_where_the_client_finds_them(commands: Commands, file: str) -> None:
    assert not kaggle.signed_in()
    path = commands.home / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert kaggle.signed_in()


def test_credentials_in_the_environment_count(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    assert not kaggle.signed_in()
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    assert kaggle.signed_in()
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(commands.home))
    assert not kaggle.signed_in()
    (commands.home / "kaggle.json").touch()
    assert kaggle.signed_in()


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_answers_without_loading_anything_heavy(commands: Commands, script: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(script), "--help"]
    done = subprocess.run(command, cwd=commands.cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert loaded & HEAVY == set()
    assert commands.tree() == {}
