"""Duplicates: every planted copy found and none invented, groups that share an image merged, conflicts told."""

import gzip
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold import duplicates
from leukofold.cells import CellTable
from leukofold.competitions import get_competition
from leukofold.duplicates import (
    HASH_DISTANCE,
    PAIR_COLUMNS,
    SIMILARITY,
    TooManyPairsError,
    candidate_pairs,
    describe,
    duplicate_report,
    find_duplicates,
    merge_groups,
)
from leukofold.errors import UserError
from leukofold.images.comparing import compare_pixels
from leukofold.images.hashing import perceptual_hash
from leukofold.images.reading import CorruptImageError, files_digest, read_image, survey_images
from leukofold.rendering import RenderSpec, render
from leukofold.rendering.degradation import degrade

if TYPE_CHECKING:
    from tests.conftest import Commands

Change = Callable[[np.ndarray], np.ndarray]


def encoded_again(quality: int) -> Change:
    def change(pixels: np.ndarray) -> np.ndarray:
        content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))

    return change


def resized(factor: float) -> Change:
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda pixels: np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=how))


def brighter(gain: float, offset: float = 0) -> Change:
    return lambda pixels: np.clip(pixels * np.float64(gain) + offset, 0, 255).astype(np.uint8)


COPIES: dict[str, Change] = {
    "encoded at quality 60": encoded_again(60),
    "half the size": resized(0.5),
    "odd size": resized(0.87),
    "larger": resized(1.5),
    "moved": lambda pixels: np.roll(pixels, (1, -1), axis=(0, 1)),
    "brighter": brighter(1.04),
    "darker, moved and encoded": lambda pixels: encoded_again(80)(brighter(0.96)(np.roll(pixels, (-1, 1), (0, 1)))),
    "less contrast": brighter(0.8, 12),
    "severity 1": lambda pixels: degrade(pixels, 1, np.random.default_rng(0)),
}


def table_of(paths: Sequence[Path], labels: Sequence[int] | None = None) -> pd.DataFrame:
    """A frame of some files, each a group of its own."""
    given = [0] * len(paths) if labels is None else labels
    return CellTable.from_columns(
        ("A", "B", "C"),
        image_id=[path.name for path in paths],
        path=[path.as_posix() for path in paths],
        bytes=[path.stat().st_size for path in paths],
        label=given,
        group=[f"g{i}" if label >= 0 else "" for i, label in enumerate(given)],
        source=["here"] * len(paths),
        is_external=[False] * len(paths),
        split=["train"] * len(paths),
    ).frame


def found(frame: pd.DataFrame, cache: Path) -> pd.DataFrame:
    """Surveys and searches."""
    return find_duplicates(frame, survey_images(frame, cache, progress=False), cache, progress=False)


def ids(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(pairs.image_id_a, pairs.image_id_b, strict=True))


def made_pairs(*rows: tuple[int, int]) -> pd.DataFrame:
    """Pairs of which only the rows matter."""
    return pd.DataFrame(rows, columns=["row_a", "row_b"], dtype=np.int64)


@pytest.fixture(scope="module")
def cells(rendered_wbcbench: Path, rendered_cnmc: Path) -> dict[str, list[Path]]:
    """Some rendered cells of each competition, no two the same."""
    truth = pd.read_csv(rendered_cnmc / "rendered_truth.csv", keep_default_na=False)
    originals = truth[truth.planted == ""].path
    return {
        "wbcbench": sorted((rendered_wbcbench / "phase1").glob("*.jpg"))[:20],
        "cnmc": [rendered_cnmc / path for path in originals[:20]],
    }


@pytest.mark.parametrize(("competition", "seeds"), [("wbcbench", (0, 1)), ("cnmc", (0, 1, 2))])
def test_every_planted_copy_is_found_and_none_invented(tmp_path: Path, competition: str, seeds: Sequence[int]) -> None:
    for seed in seeds:
        root, spec = tmp_path / str(seed), {"images": 100, "test_images": 15, "patients": 12}
        render(
            competition,
            root,
            RenderSpec(**spec, seed=seed, exact_duplicates=6, near_duplicates=8),
            workers=1,
            progress=False,
        )
        truth = pd.read_csv(root / "rendered_truth.csv", keep_default_na=False)
        copies = truth[truth.duplicate_of != ""]
        planted = {
            frozenset({(root / path).as_posix(), (root / original).as_posix()}): kind == "exact_duplicate"
            for path, original, kind in zip(copies.path, copies.duplicate_of, copies.planted, strict=True)
        }
        assert len(planted) == 14
        frame = get_competition(competition).read(root).frame
        pairs = found(frame, tmp_path / "cache")
        paths = frame.path.to_numpy(dtype=object)
        seen = {
            frozenset({paths[a], paths[b]}): exact
            for a, b, exact in zip(pairs.row_a, pairs.row_b, pairs.exact, strict=True)
        }
        assert seen == planted
        assert len(pairs) == 14
        assert pairs.distance.max() <= HASH_DISTANCE
        assert (pairs.distance[pairs.exact] == 0).all()
        assert (pairs.similarity[pairs.exact] == 1).all()
        assert pairs.similarity.between(0.9, 1).all()


@pytest.mark.parametrize("competition", ["wbcbench", "cnmc"])
@pytest.mark.parametrize("kind", COPIES)
def test_changed_copies_are_found(tmp_path: Path, cells: dict[str, list[Path]], competition: str, kind: str) -> None:
    originals = cells[competition]
    copies = [tmp_path / f"copy{i}.png" for i in range(len(originals))]
    for original, copy in zip(originals, copies, strict=True):
        cv2.imwrite(str(copy), COPIES[kind](read_image(original))[..., ::-1])
    pairs = found(table_of([*originals, *copies]), tmp_path / "cache")
    assert ids(pairs) == [(a.name, b.name) for a, b in zip(originals, copies, strict=True)]
    assert not pairs.exact.any()


def test_other_cells_are_far_below_the_limit(cells: dict[str, list[Path]]) -> None:
    for paths in cells.values():
        every = np.array([(i, j) for i in range(len(paths)) for j in range(i)])
        assert compare_pixels([str(path) for path in paths], every).max() < SIMILARITY - 0.05


def test_round_smooth_cells_of_one_size_differ_by_what_is_inside(tmp_path: Path) -> None:
    """The outline alone makes no copy: discs of one radius with two faint textures."""
    rng = np.random.default_rng(7)
    disc = cv2.GaussianBlur(cv2.circle(np.zeros((300, 300), np.float32), (150, 150), 60, 90, -1), (0, 0), 1.5)
    paths = []
    for name in ("a", "b"):
        texture = cv2.GaussianBlur(rng.normal(0, 1, (300, 300)).astype(np.float32), (0, 0), 5)
        shaded = disc * (1 + 0.05 * texture / texture.std())
        paths.append(tmp_path / f"{name}.png")
        cv2.imwrite(str(paths[-1]), shaded.astype(np.uint8))
    one, other = (read_image(path) for path in paths)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
    assert compare_pixels([str(path) for path in paths], np.array([[0, 1]]))[0] < 0.75
    assert found(table_of(paths), tmp_path / "cache").empty


def test_images_of_other_proportions_are_no_copies(tmp_path: Path, cells: dict[str, list[Path]]) -> None:
    original = read_image(cells["wbcbench"][0])
    for width, same in ((376, True), (420, False)):
        path = tmp_path / f"{width}.png"
        cv2.imwrite(str(path), cv2.resize(original, (width, original.shape[0]))[..., ::-1])
        (similarity,) = compare_pixels([str(cells["wbcbench"][0]), str(path)], np.array([[0, 1]]))
        assert (similarity >= SIMILARITY) == same
        assert (similarity == 0) != same


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_candidates_are_those_of_brute_force(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    count, size = data.draw(st.integers(0, 40)), data.draw(st.sampled_from([1, 4, 32]))
    hashes = rng.integers(0, 256, (max(count, 1), size), dtype=np.uint8)[rng.integers(0, max(count, 1), count)]
    hashes = hashes ^ (rng.random(hashes.shape) < 0.1).astype(np.uint8)
    distance = data.draw(st.integers(0, 8 * size))
    block = data.draw(st.sampled_from([1, 7, 64]))
    bits = np.unpackbits(hashes, axis=1)
    expected = [(i, j) for i in range(count) for j in range(i + 1, count) if (bits[i] != bits[j]).sum() <= distance]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        assert candidate_pairs(hashes, distance).tolist() == [list(pair) for pair in expected]


def test_too_many_candidates_are_refused_by_name(
    tmp_path: Path, cells: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (60, 32), dtype=np.uint8)
    hashes[20:] = hashes[20]
    hashes[30, 0] ^= 1
    assert len(candidate_pairs(hashes, 1)) == 40 * 39 // 2
    with pytest.raises(TooManyPairsError, match="more than 700 pairs of images look alike") as caught:
        candidate_pairs(hashes, 1, most=700)
    assert caught.value.row >= 20
    frame = table_of(cells["wbcbench"])
    alike = np.zeros((len(frame), 32), np.uint8)
    monkeypatch.setattr(duplicates, "MOST_CANDIDATES", 100)
    name = re.escape(str(frame.path[0]))
    with pytest.raises(UserError, match=f"more than 100 pairs .* like {name}; are they blank"):
        find_duplicates(frame, alike, tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("*.csv"))


def test_many_copies_of_one_file_stay_few_pairs(tmp_path: Path, cells: dict[str, list[Path]]) -> None:
    """Each is paired with the first labelled one, to which a changed copy is compared too."""
    content = cells["wbcbench"][0].read_bytes()
    paths = [tmp_path / f"{i:03d}.jpg" for i in range(30)]
    for path in paths:
        path.write_bytes(content)
    cv2.imwrite(str(paths[7]), encoded_again(70)(read_image(cells["wbcbench"][0]))[..., ::-1])
    pairs = found(table_of(paths, [-1, -1, *[0] * 28]), tmp_path / "cache")
    assert len(pairs) == 29
    assert set(ids(pairs)) == {
        *((f"{i:03d}.jpg", "002.jpg") for i in range(2)),
        *(("002.jpg", f"{i:03d}.jpg") for i in range(3, 30)),
    }
    assert pairs[~pairs.exact].image_id_b.tolist() == ["007.jpg"]


def test_a_file_that_vanishes_while_copies_are_searched_is_named(
    tmp_path: Path, cells: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{k}.jpg" for k in range(3)]
    for path in paths:
        shutil.copy(cells["wbcbench"][0], path)
    frame = table_of(paths)
    hashes = survey_images(frame, tmp_path / "cache", progress=False)
    paths[1].unlink()
    with pytest.raises(CorruptImageError, match=r"1\.jpg: the file is gone"):
        find_duplicates(frame, hashes, tmp_path / "cache", progress=False)
    for path in paths:
        shutil.copy(cells["wbcbench"][0], path)
    digest = files_digest

    def late(files: pd.DataFrame) -> str:
        found = digest(files)
        paths[2].unlink()  # between the look at its state and the reading
        return found

    monkeypatch.setattr(duplicates, "files_digest", late)
    with pytest.raises(CorruptImageError, match=r"2\.jpg: the file is gone"):
        find_duplicates(frame, hashes, tmp_path / "cache", progress=False)


def test_blank_images_are_copies_only_byte_by_byte(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, grey in zip(paths, (0, 0, 255, 255, 90, 91), strict=True):
        cv2.imwrite(str(path), np.full((200, 200, 3), grey, np.uint8))
    assert {perceptual_hash(read_image(path)).tobytes() for path in paths} == {bytes(32)}
    pairs = found(table_of(paths), tmp_path / "cache")
    assert ids(pairs) == [("0.png", "1.png"), ("2.png", "3.png")]
    assert pairs.exact.all()


def test_a_table_without_copies_or_rows_gives_an_empty_table_of_the_same_columns(
    tmp_path: Path, cells: dict[str, list[Path]]
) -> None:
    for paths in (cells["cnmc"][:5], [cells["cnmc"][0]], []):
        frame = table_of(paths)
        for _ in range(2):  # computed, then loaded
            pairs = found(frame, tmp_path / "cache")
            assert list(pairs.columns) == list(PAIR_COLUMNS)
            assert pairs.empty
        assert merge_groups(frame.group.tolist(), pairs, np.zeros(len(frame), bool)).tolist() == frame.group.tolist()
        assert describe(duplicate_report(frame, ("A", "B", "C"), pairs), len(frame)) == (
            f"  no two of {len(frame)} images are the same"
        )


def test_pairs_are_kept_and_searched_again_only_where_something_changed(
    tmp_path: Path, cells: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / path.name for path in cells["wbcbench"][:6]]
    for path, original in zip(paths, cells["wbcbench"], strict=False):
        path.write_bytes(original.read_bytes())
    paths.append(tmp_path / "NA.jpg")  # a name that pandas would read as a missing value
    paths[-1].write_bytes(paths[2].read_bytes())
    frame, cache = table_of(paths), tmp_path / "cache"
    first = found(frame, cache)
    assert ids(first) == [(paths[2].name, "NA.jpg")]
    (stored,) = (cache / "duplicates").glob("*.csv.gz")

    searched: list[int] = []
    real = duplicates.candidate_pairs
    monkeypatch.setattr(duplicates, "candidate_pairs", lambda *a: searched.append(1) or real(*a))  # type: ignore[func-returns-value]
    pd.testing.assert_frame_equal(found(frame, cache), first)
    assert searched == []
    whole = stored.read_bytes()
    other = gzip.compress(gzip.decompress(whole).replace(b"NA.jpg", b"x.jpg"))
    flipped = whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:]
    for damaged in (b"", b"none", other, gzip.compress(b"image_id_a\nNA.jpg\n"), whole[:-9], flipped):
        stored.write_bytes(damaged)
        pd.testing.assert_frame_equal(found(frame, cache), first)
    assert len(searched) == 6
    paths[-1].write_bytes(cells["wbcbench"][7].read_bytes())
    assert found(table_of(paths), cache).empty
    monkeypatch.setattr(duplicates, "VERSION", duplicates.VERSION + 1)
    assert found(table_of(paths), cache).empty
    assert len(searched) == 8
    assert len(list((cache / "duplicates").glob("*.csv.gz"))) == 3


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_merged_groups_are_those_of_brute_force(data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.sampled_from(["", "", *"abcdefghij"]), min_size=2, max_size=25))
    row = st.integers(0, len(groups) - 1)
    edges = data.draw(st.lists(st.tuples(row, row).filter(lambda edge: edge[0] < edge[1]), max_size=12))
    merged = merge_groups(groups, made_pairs(*edges), np.zeros(len(groups), bool))
    sets = [{i} for i in range(len(groups))]  # rows that belong together, joined until nothing changes
    links = [*edges, *((i, j) for i, a in enumerate(groups) for j, b in enumerate(groups) if a == b != "")]
    for a, b in links:
        joined = sets[a] | sets[b]
        for i in joined:
            sets[i] = joined
    for i, group in enumerate(groups):
        names = sorted({groups[j] for j in sets[i]} - {""})
        if group == "":
            assert merged[i] == ""
        elif len(names) <= 3:
            assert merged[i] == "+".join(names)
        else:
            assert re.fullmatch(rf"{names[0]}\+{len(names) - 1}-[0-9a-f]{{8}}", merged[i])
        for j, other in enumerate(groups):
            if group and other:
                assert (merged[i] == merged[j]) == (sets[i] is sets[j])


def test_the_name_of_many_groups_does_not_depend_on_their_order() -> None:
    names = [f"P{i}" for i in range(9)]
    pairs = made_pairs(*((0, i) for i in range(1, 9)))
    own = np.zeros(len(names), bool)
    one, other = merge_groups(names, pairs, own), merge_groups(names[::-1], pairs, own)
    assert len(set(one)) == 1
    assert set(one) == set(other)
    assert one[0].startswith("P0+8-")
    assert merge_groups([*names[:8], "Q"], pairs, own)[0] != one[0]


def test_a_report_tells_labels_conflicts_and_what_crosses() -> None:
    frame = CellTable.from_columns(
        ("BA", "EO"),
        image_id=list("abcdefg"),
        path=list("abcdefg"),
        bytes=[1] * 7,
        label=[0, 1, 1, 0, -1, -1, 1],
        group=["p", "p", "q", "q", "", "", "r"],
        source=["own", "own", "own", "more", "own", "own", "more"],
        is_external=[False] * 7,
        split=["train", "train", "train", "ext", "test", "test", "ext"],
    ).frame
    rows = [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (2, 6)]
    pairs = pd.DataFrame(
        [(*(frame.image_id[i] for i in pair), *pair, 3, 0.95, pair == (0, 1)) for pair in rows],
        columns=list(PAIR_COLUMNS),
    )
    report = duplicate_report(frame, ("BA", "EO"), pairs)
    assert report.set.tolist() == [0] * 6
    assert report.conflict.tolist() == [True] * 6  # of the whole set
    assert report.crosses_groups.tolist() == [False, True, True, False, False, True]
    assert report.touches_test.tolist() == [True] * 6
    apart = duplicate_report(frame, ("BA", "EO"), pairs.iloc[[0, 4, 5]])  # {a, b} conflicts, {e, f} and {c, g} agree
    assert apart.conflict.tolist() == [True, False, False]
    assert apart.touches_test.tolist() == [False, True, False]
    assert apart.set.tolist() == [0, 1, 2]
    assert report.label_a.tolist() == ["BA", "BA", "BA", "BA", "", "EO"]
    assert report.label_b.tolist() == ["EO", "EO", "BA", "", "", "EO"]
    assert report.source_b.tolist() == ["own", "own", "more", "own", "own", "more"]
    assert report.split_b.tolist() == ["train", "train", "ext", "test", "test", "ext"]
    assert report.group_a.tolist() == ["p", "p", "p", "p", "", "q"]
    assert describe(report, 7) == "\n".join(
        [
            "  6 pairs of 7 images are the same, in 1 sets",
            "  byte-identical: 1  by their pixels: 5",
            "  by source: own 4  more = own 2",
            "  across groups: 3 (such groups count as one, so no fold parts them)",
            "  with a test image: 1 sets (no fold trains on these)",
            "  labelled differently: 1 sets: a (BA) = e (test) = c (EO) = b (EO) = d (BA) = f (test) = g (EO)",
        ]
    )
    assert describe(apart, 7).endswith(
        "  with a test image: 1 sets (no fold trains on these)\n  labelled differently: 1 sets: a (BA) = b (EO)"
    )


def test_the_command_line_writes_a_table_and_tells_the_counts(commands: "Commands", rendered_cnmc: Path) -> None:
    setting = ["--set", "data.competition=cnmc", "--set", f"data.root={rendered_cnmc}", "--set", "data.render=null"]
    said = commands.succeed("check_duplicates.py", *setting)
    assert "  3 pairs of 92 images are the same, in 3 sets\n  byte-identical: 3  by their pixels: 0" in said
    table = pd.read_csv(commands.cwd / "duplicates-cnmc.csv")
    assert len(table) == 3
    assert table.exact.all()
    assert (table.label_a == table.label_b).all()
    commands.succeed("check_duplicates.py", *setting, "--out", "tables/found.csv")
    assert (commands.cwd / "tables/found.csv").read_bytes() == (commands.cwd / "duplicates-cnmc.csv").read_bytes()
    assert "no/such" in commands.refused("check_duplicates.py", "--config", "no/such.yaml")


def test_external_images_take_the_names_of_the_competitions_groups() -> None:
    groups, external = ["p1", "p2", "p3", "x/1", "x/2", "x/3"], np.array([False] * 3 + [True] * 3)
    merged = merge_groups(groups, made_pairs((0, 3), (1, 4), (2, 4), (3, 5)), external)
    assert merged.tolist() == ["p1", "p2+p3", "p2+p3", "p1", "p2+p3", "p1"]
    assert merge_groups(groups, made_pairs((3, 5)), external).tolist() == [
        "p1",
        "p2",
        "p3",
        "x/1+x/3",
        "x/2",
        "x/1+x/3",
    ]
