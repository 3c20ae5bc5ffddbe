"""The image cache: what it holds, when it is made anew, and that neither interruption nor company harms it."""

import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from leukofold import rowmaps
from leukofold.config import DenoiseConfig, ImageConfig
from leukofold.errors import UserError
from leukofold.images import cache as cache_module
from leukofold.images.cache import open_cache
from leukofold.images.denoising import Denoising, denoise
from leukofold.images.preparing import Preparation
from leukofold.images.reading import CorruptImageError, read_image


def make_images(folder: Path, count: int = 11) -> pd.DataFrame:
    """Small noisy images of two sizes, as rows of a table."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for i in range(count):
        smooth = cv2.GaussianBlur(rng.integers(0, 256, (40, 40 + 2 * (i % 2), 3), dtype=np.uint8), (0, 0), 4)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), noisy)
    return pd.DataFrame(
        {
            "image_id": [f"{i}.png" for i in range(count)],
            "path": [str(folder / f"{i}.png") for i in range(count)],
            "split": "train",
        }
    )


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Eleven images."""
    return make_images(tmp_path / "images")


def plain(size: int = 24, **settings: Any) -> Preparation:
    """A preparation without a competition's own step."""
    return Preparation(ImageConfig(size=size, **settings), lambda image: image)


def folders(tmp_path: Path) -> list[str]:
    """The finished and unfinished caches there."""
    return sorted(path.name for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir())


def test_it_holds_every_image_decoded_cropped_and_resized(frame: pd.DataFrame, tmp_path: Path) -> None:
    images = open_cache(frame, plain(24, crop=30), "none", tmp_path / "cache", progress=False)
    assert images.pixels.shape == (11, 24, 24, 3)
    assert images.pixels.dtype == np.uint8
    for row, path in enumerate(frame.path):
        decoded = read_image(path)
        left = (decoded.shape[1] - 30) // 2
        expected = cv2.resize(decoded[5:35, left : left + 30], (24, 24), interpolation=cv2.INTER_AREA)
        assert np.array_equal(images.pixels[row], expected)
    assert images.rows(["3.png", "0.png"]).tolist() == [3, 0]
    assert sorted(path.name for path in images.folder.iterdir()) == [
        "checksums.npy",
        "index.csv",
        "pixels.json",
        "pixels.npy",
    ]


def test_denoising_comes_before_the_resize_and_is_keyed_by_its_parameters(frame: pd.DataFrame, tmp_path: Path) -> None:
    settings = DenoiseConfig(threshold=2.0)
    images = open_cache(frame, plain(24, denoise=settings), "none", tmp_path / "cache", progress=False)
    clean = denoise(read_image(frame.path[4]), Denoising(**settings.model_dump()))
    assert not np.array_equal(clean, read_image(frame.path[4]))
    assert np.array_equal(images.pixels[4], cv2.resize(clean, (24, 24), interpolation=cv2.INTER_AREA))
    for other in (DenoiseConfig(threshold=3.0), DenoiseConfig(threshold=2.0, strength=0.5), None):
        other_images = open_cache(frame, plain(24, denoise=other), "none", tmp_path / "cache", progress=False)
        assert other_images.folder != images.folder
    assert len(folders(tmp_path)) == 4


def test_a_complete_cache_is_opened_and_not_built_again(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache_module, "_build", lambda *_: pytest.fail("built again"))
    assert open_cache(frame, plain(), "none", tmp_path / "cache", progress=False).folder == first.folder


@pytest.mark.parametrize("change", ["content", "time", "size", "id", "competition"])
def test_a_changed_file_or_setting_makes_a_new_cache(frame: pd.DataFrame, tmp_path: Path, change: str) -> None:
    old = open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    preparation, competition = plain(), "none"
    if change == "content":
        cv2.imwrite(frame.path[3], np.zeros((40, 40, 3), np.uint8))
    elif change == "time":
        os.utime(frame.path[3], (1, 1))
    elif change == "size":
        preparation = plain(25)
    elif change == "id":
        frame = frame.assign(image_id=[f"x{i}" for i in range(11)])
    else:
        competition = "cnmc"
    new = open_cache(frame, preparation, competition, tmp_path / "cache", progress=False)
    assert new.folder != old.folder
    if change == "content":
        assert not new.pixels[3].any()


def test_an_interrupted_build_goes_on_where_it_stopped(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 2)
    whole = open_cache(frame, plain(), "none", tmp_path / "whole", progress=False).pixels.copy()
    read: list[str] = []

    def reading(path: str) -> np.ndarray:
        if "6.png" in path and len(read) < 8:
            raise KeyboardInterrupt
        read.append(Path(path).name)
        return read_image(path)

    monkeypatch.setattr(cache_module, "read_image", reading)
    with pytest.raises(KeyboardInterrupt):
        open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert [Path(name).suffix for name in folders(tmp_path)] == [".partial"]
    read += ["-"] * 8
    images = open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert np.array_equal(images.pixels, whole)
    again = read[read.index("-") + 8 :]
    assert not {"0.png", "1.png", "2.png", "3.png", "4.png", "5.png"} & set(again)
    assert [Path(name).suffix for name in folders(tmp_path)] == [""]


def test_a_corrupt_image_is_named_and_leaves_no_finished_cache(frame: pd.DataFrame, tmp_path: Path) -> None:
    Path(frame.path[5]).write_bytes(b"404")
    with pytest.raises(CorruptImageError, match=r"5.png: not an image"):
        open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert not [name for name in folders(tmp_path) if not name.endswith(".partial")]


def build_in_a_process(frame: pd.DataFrame, cache: Path, barrier: Any, results: Any) -> None:
    """Builds, together with another process, and tells how many images it decoded itself."""
    decoded: list[str] = []

    def reading(path: str) -> np.ndarray:
        decoded.append(path)
        return read_image(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache_module, "CHUNK", 2)
        patched.setattr(cache_module, "read_image", reading)
        barrier.wait()
        images = open_cache(frame, plain(), "none", cache, progress=False)
    results.put((len(decoded), int(images.pixels.astype(np.int64).sum())))


def test_of_two_processes_at_once_one_builds_and_both_read(frame: pd.DataFrame, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (frame, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=build_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    told = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in told) == [0, 11]
    assert told[0][1] == told[1][1]


def test_a_full_disk_is_told_before_anything_is_written(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5000))
    message = r"data.cache: 11 images at 24 pixels need 0.0 GB in .*, 0.0 GB are free; name a folder on a larger disk"
    with pytest.raises(UserError, match=message):
        open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert folders(tmp_path) == []


def test_a_pickled_cache_opens_its_own_map(frame: pd.DataFrame, tmp_path: Path) -> None:
    images = open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert images.pixels.any()
    packed = pickle.dumps(images)
    assert len(packed) < 5000  # not the pixels
    assert np.array_equal(pickle.loads(packed).pixels, images.pixels)


def test_a_start_that_failed_halfway_is_forgotten(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = rowmaps.create_map

    def failing(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
        if path.name == "done.npy":
            raise OSError(28, "No space left on device", str(path))
        return create(path, kind, shape)

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "create_map", failing)
        with pytest.raises(OSError, match="No space left"):
            open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5000))
        with pytest.raises(UserError, match=r"data.cache: 11 images at 24 pixels need"):
            open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    assert open_cache(frame, plain(), "none", tmp_path / "cache", progress=False).pixels.any()


@pytest.mark.parametrize("name", ["pixels.npy", "checksums.npy", "done.npy"])
@pytest.mark.parametrize("damage", ["cut", "header", "other"])
def test_an_unfinished_build_that_is_damaged_is_begun_anew(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 2)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    (partial,) = (tmp_path / "cache" / "images").glob("*.partial")
    file = partial / name
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "header":
        file.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': " + file.read_bytes()[20:])
    else:
        np.save(file, np.zeros((2, 3)))
    images = open_cache(frame, plain(), "none", tmp_path / "cache", progress=False)
    for row, path in enumerate(frame.path):
        expected = cv2.resize(read_image(path), (24, 24), interpolation=cv2.INTER_AREA)
        assert np.array_equal(images.read(row), expected)
