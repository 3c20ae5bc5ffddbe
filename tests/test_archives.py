"""Archives that somebody else made: unpacked whole and below their folder, or refused before anything is written."""

from __future__ import annotations

import io
import random
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold import archives
from leukofold.archives import unpack
from leukofold.competitions import get_competition
from leukofold.competitions.cnmc import FINAL, MOST_BYTES, PREDICTIONS
from leukofold.errors import UserError
from leukofold.preparation import fetch_input

if TYPE_CHECKING:
    from tests.conftest import Commands, WbcInput

CONTENT = {
    "a.csv": b"ID\n1\n",
    "phase1/1.jpg": bytes(range(256)) * 40,
    "phase1/deep/2.jpg": b"",
    "\u00e9 b/3.jpg": b"3",
}


def packed(entries: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder to unpack into."""
    made = tmp_path / "root"
    made.mkdir()
    return made


def refused(root: Path, content: bytes, said: str, most: int = archives.MOST_BYTES) -> None:
    """Shows that an archive is refused in one line, and that nothing is written."""
    archive = root.parent / "given.zip"
    archive.write_bytes(content)
    before = files_below(root.parent)
    with pytest.raises(UserError, match=said) as caught:
        unpack(archive, root, most)
    assert str(caught.value).startswith(f"{archive}: ")
    assert str(caught.value).isprintable()
    assert files_below(root.parent) == before


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_files_come_out_as_they_went_in_and_replace_older_ones(root: Path, method: int) -> None:
    archive = root.parent / "given.zip"
    archive.write_bytes(packed(CONTENT, method))
    (root / "a.csv").write_bytes(b"older")
    (root / "mine.txt").write_bytes(b"mine")
    unpack(archive, root)
    assert files_below(root) == {**CONTENT, "mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.jpg", r"'\.\./a\.jpg' has a way up \(\.\.\) in its name; nothing was unpacked"),
        ("phase1/../../a.jpg", "has a way up"),
        ("/tmp/a.jpg", "has an absolute path"),
        ("C:/a.jpg", "has an absolute path"),
        ("C:a.jpg", "has an absolute path"),
        ("..\\a.jpg", "has a backslash"),
        ("\\\\host\\a.jpg", "has an absolute path"),
        ("a\n.jpg", "has a control character"),
        ("./", "has no name"),
    ],
)
def test_a_name_that_leads_out_is_refused(root: Path, name: str, said: str) -> None:
    refused(root, packed({"a.csv": b"1", name: b"2"}), said)


def test_a_name_that_is_cut_at_a_nul_is_refused(root: Path) -> None:
    refused(root, packed({"a.jpgX/b": b"1"}).replace(b"a.jpgX", b"a.jpg\0"), "has a control character in its name")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (stat.S_IFLNK, "'phase1' is a link"), (stat.S_IFIFO, "neither file nor folder"),
        (stat.S_IFCHR, "neither file nor folder"), (stat.S_IFSOCK, "neither file nor folder"),
    ],
)  # fmt: skip
def test_links_and_special_files_are_refused(root: Path, kind: int, said: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("phase1")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc")
        archive.writestr("phase1/passwd", b"x")
    refused(root, buffer.getvalue(), said)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a"), "holds 'a' twice"), (("a", "./a"), "holds './a' twice"), (("b/a", "b//a"), "holds 'b//a' twice"),
        (("a", "a/c"), "'a' is a file and a folder"), (("a/b/c", "a/b"), "'b' is a file and a folder"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_place_are_refused(root: Path, names: tuple[str, str], said: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    refused(root, buffer.getvalue(), said)


def test_an_encrypted_member_is_refused(root: Path) -> None:
    content = bytearray(packed({"a.csv": b"1"}))
    content[content.index(b"PK\x03\x04") + 6] |= 1  # the flag, in the file and in the list of files
    content[content.index(b"PK\x01\x02") + 8] |= 1
    refused(root, bytes(content), "'a.csv' is encrypted")


def test_a_folder_of_the_users_that_leads_elsewhere_is_not_written_through(root: Path) -> None:
    (root.parent / "elsewhere").mkdir()
    (root / "phase1").symlink_to(root.parent / "elsewhere")
    refused(root, packed(CONTENT), r"a link leads .*/phase1.* out; nothing was unpacked")


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(root: Path) -> None:
    (root.parent / "precious").write_bytes(b"mine")
    (root / "a.csv").symlink_to(root.parent / "precious")
    (root.parent / "given.zip").write_bytes(packed(CONTENT))
    unpack(root.parent / "given.zip", root)
    assert (root / "a.csv").read_bytes() == CONTENT["a.csv"]
    assert (root.parent / "precious").read_bytes() == b"mine"


# --- sizes --------------------------------------------------------------------------------------


def test_more_than_the_limit_and_more_than_the_disk_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = packed({"zeros.bin": bytes(5_000_000)})
    assert len(content) < 10_000
    refused(
        root, content, r"unpacks to 0\.0 GB, more than 0\.0; if it is what it should be, unpack it by hand", 4_999_999
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 4_999_999})())
    refused(root, content, r"unpacks to 0\.0 GB, .*root has 0\.0 GB left; free some space, then run again")
    (root / "zeros.bin").write_bytes(b"x")  # of an earlier attempt: its room comes back
    unpack(root.parent / "given.zip", root)
    assert (root / "zeros.bin").stat().st_size == 5_000_000


def test_too_many_files_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    refused(root, packed(CONTENT), "holds 4 files, more than 3")


@pytest.mark.parametrize("declared", [10, 4_000_000])
def test_a_member_of_another_length_than_it_says_is_refused(root: Path, declared: int) -> None:
    content = bytearray(packed({"zeros.bin": bytes(1_000_000)}))
    checksum = zlib.crc32(bytes(min(declared, 1_000_000)))  # right for what will have been read
    for mark, at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        start = content.index(mark) + at
        struct.pack_into("<L", content, start, checksum)
        struct.pack_into("<L", content, start + 8, declared)
    archive = root.parent / "given.zip"
    archive.write_bytes(content)
    if declared < 1_000_000:  # what is beyond is never unpacked
        unpack(archive, root)
        assert (root / "zeros.bin").stat().st_size == declared
    else:
        refused(root, bytes(content), "not a sound zip archive")


def test_overlapping_members_are_refused(root: Path) -> None:
    """Of one compressed megabyte each entry of the list makes another, as in Fifield's bomb."""
    single = packed({"00": bytes(1_000_000)})
    start, end = single.index(b"PK\x01\x02"), single.index(b"PK\x05\x06")
    entries = b"".join(single[start:end].replace(b"00", b"%02d" % number) for number in range(50))
    tail = bytearray(single[end:])
    struct.pack_into("<HHL", tail, 8, 50, 50, len(entries))
    refused(root, single[:start] + entries + bytes(tail), "members overlap, such as '00'; nothing was unpacked")


# --- damage and interruptions -------------------------------------------------------------------


def test_a_wrong_checksum_in_the_last_member_leaves_nothing_unpacked(root: Path) -> None:
    content = bytearray(packed(CONTENT, zipfile.ZIP_STORED))
    content[content.index(b"PK\x01\x02") - 1] ^= 1
    refused(root, bytes(content), "not a sound zip archive; delete it and download again")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_of_a_mutated_archive_comes_what_was_packed_or_a_line_for_the_user(seed: int) -> None:
    rng = random.Random(seed)
    content = bytearray(packed(CONTENT, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        content[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
    fault = ""
    with tempfile.TemporaryDirectory() as folder:
        archive, root = Path(folder) / "given.zip", Path(folder) / "root"
        archive.write_bytes(content)
        root.mkdir()
        try:
            unpack(archive, root)
        except UserError as error:
            fault = str(error)
        found = files_below(root)
        assert files_below(Path(folder)).keys() == {"given.zip", *(f"root/{name}" for name in found)}
    assert "\n" not in fault
    assert not (fault and found)
    assert set(found.values()) <= set(CONTENT.values())  # names have no checksum


@pytest.fixture
def served(wbc: WbcInput, commands: Commands) -> tuple[Path, Callable[[], Path]]:
    """WBCBench's archive in the folder, as an interrupted call leaves it; and the call, without a Kaggle client."""
    wbc.root = commands.home / "served"
    wbc.write()
    folder = commands.cwd / "input"
    folder.mkdir()
    (folder / "wbc-bench-2026.zip").write_bytes(packed(files_below(wbc.root)))
    return folder, lambda: fetch_input(get_competition("wbcbench"), folder)


def test_an_interrupted_unpacking_leaves_whole_files_and_is_completed_without_a_download(
    served: tuple[Path, Callable[[], Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fetch = served
    archive = folder / "wbc-bench-2026.zip"
    with zipfile.ZipFile(archive) as opened:
        whole = {name: opened.read(name) for name in opened.namelist()}
    write, written = archives._write, []

    def interrupted(path: Path, *arguments: object) -> None:
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        write(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    found = files_below(folder)
    assert len(found) == 1 + 3
    assert found.items() - {(archive.name, archive.read_bytes())} < whole.items()
    monkeypatch.undo()
    fetch()
    assert files_below(folder) == whole


def test_nothing_half_written_stays_when_the_disk_is_full(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "given.zip").write_bytes(packed(CONTENT))

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(root.parent / "given.zip", root)
    assert files_below(root) == {}


def test_a_download_that_was_cut_short_is_fetched_again(
    served: tuple[Path, Callable[[], Path]], commands: Commands
) -> None:
    folder, fetch = served
    archive = folder / "wbc-bench-2026.zip"
    whole = commands.home / "whole.zip"
    whole.write_bytes(archive.read_bytes())
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(UserError, match="the Kaggle client is not installed"):
        fetch()
    commands.sign_in()
    commands.fake_kaggle(f'cp {whole} "$6/wbc-bench-2026.zip"')
    fetch()
    assert len(commands.kaggle_calls()) == 1
    assert (folder / "phase1_label.csv").exists()


# --- a submission -------------------------------------------------------------------------------


@pytest.fixture
def finals(tmp_path: Path) -> Path:
    """A folder of two final-phase images."""
    (tmp_path / FINAL).mkdir()
    for number in (1, 2):
        (tmp_path / FINAL / f"{number}.bmp").touch()
    return tmp_path


def faults_of(finals: Path, content: bytes) -> list[str]:
    path = finals / "s.zip"
    path.write_bytes(content)
    return get_competition("cnmc").check_submission(path, finals)


def test_a_submission_that_unpacks_to_more_than_it_could_be_is_not_read(finals: Path) -> None:
    content = packed({PREDICTIONS: b"0\n" * MOST_BYTES})
    assert len(content) < 10_000
    assert faults_of(finals, content) == [f"{PREDICTIONS} unpacks to 2,000,000 bytes; two for each image would do"]
    assert faults_of(finals, packed({PREDICTIONS: b"0\n1\n"})) == []
    names = packed({"a\n\x1b[2J": b""})
    assert faults_of(finals, names) == [f"the zip holds a\\n\\x1b[2J; it must hold one file, {PREDICTIONS}"]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mutated_submission_is_a_fault_or_the_same(seed: int) -> None:
    rng = random.Random(seed)
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    content = bytearray(packed({PREDICTIONS: b"0\n1\n"}, method))
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FINAL).mkdir()
        for number in (1, 2):
            (Path(folder) / FINAL / f"{number}.bmp").touch()
        faults = faults_of(Path(folder), bytes(content))
    assert "\n" not in "".join(faults)
