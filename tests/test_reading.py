"""Decoding: every format in RGB, every damaged file refused by name, surveyed sets remembered."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from leukofold.errors import UserError
from leukofold.images.hashing import perceptual_hash
from leukofold.images.reading import CorruptImageError, files_digest, read_image, survey_images, unreadable_images

EXACT = [".png", ".bmp", ".tiff"]
ANY_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture(height: int = 40, width: int = 30) -> np.ndarray:
    """RGB noise on a red ground: no two channels are alike."""
    pixels = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[..., 0] += 180
    return pixels


def encoded(suffix: str, pixels: np.ndarray | None = None) -> bytes:
    """Encodes an RGB(A) or grey picture."""
    rgb = picture() if pixels is None else pixels
    order = {2: rgb, 3: rgb[..., ::-1]}.get(rgb.ndim, rgb)
    if rgb.ndim == 3 and rgb.shape[2] == 4:
        order = rgb[..., [2, 1, 0, 3]]
    return bytes(cv2.imencode(suffix, np.ascontiguousarray(order))[1])


def saved(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", EXACT)
def test_lossless_formats_decode_to_the_very_pixels_in_rgb(tmp_path: Path, suffix: str) -> None:
    assert np.array_equal(read_image(saved(tmp_path, f"a{suffix}", encoded(suffix))), picture())


def test_jpeg_keeps_the_order_of_channels(tmp_path: Path) -> None:
    pixels = np.zeros((368, 370, 3), np.uint8)
    pixels[...] = (200, 90, 20)
    decoded = read_image(saved(tmp_path, "a.jpg", encoded(".jpg", pixels)))
    assert decoded.shape == (368, 370, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - (200, 90, 20)).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_grey_images_have_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    grey = picture()[..., 0]
    decoded = read_image(saved(tmp_path, f"a{suffix}", encoded(suffix, grey)))
    assert decoded.shape == (40, 30, 3)
    assert (decoded == decoded[..., :1]).all()
    if suffix != ".jpg":
        assert np.array_equal(decoded[..., 0], grey)


def test_transparency_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    alpha = np.random.default_rng(1).integers(1, 256, (40, 30, 1), dtype=np.uint8)
    rgba = np.concatenate([picture(), alpha], axis=2)
    assert np.array_equal(read_image(saved(tmp_path, "a.png", encoded(".png", rgba))), picture())


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    assert np.array_equal(read_image(str(saved(tmp_path, "a.jpg", encoded(".bmp")))), picture())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"<html><body>404 Not Found</body></html>\n", "not an image"),
        (encoded(".jpg")[:-2], "cut short"),
        (encoded(".jpg")[: len(encoded(".jpg")) // 2], "cut short"),
        (encoded(".png")[: len(encoded(".png")) // 2], "cut short"),
        (encoded(".bmp")[: len(encoded(".bmp")) // 2], "cut short"),
        (encoded(".bmp")[:-1], "cut short"),
        (encoded(".jpg")[:300] + bytes(3000), "cut short"),  # a download whose rest was never filled in
    ],
)
def test_a_damaged_file_is_refused_by_name_and_kind(tmp_path: Path, content: bytes, said: str) -> None:
    path = saved(tmp_path, "cell.bin", content)
    with pytest.raises(CorruptImageError, match=f"cell.bin: .*{said}"):
        read_image(path)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError, match=r"gone\.jpg: the file is gone"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff"])
@ANY_FOLDER
@given(share=st.floats(0, 0.97))
def test_no_file_that_is_cut_short_is_decoded(tmp_path: Path, suffix: str, share: float) -> None:
    content = encoded(suffix)
    with pytest.raises(CorruptImageError):
        read_image(saved(tmp_path, "a", content[: int(share * len(content))]))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff"])
@ANY_FOLDER
@given(where=st.integers(0, 60), byte=st.integers(0, 255))
@example(where=20, byte=32)  # makes a BMP wider than OpenCV takes
def test_a_damaged_header_gives_an_image_or_the_refusal_of_one(
    tmp_path: Path, suffix: str, where: int, byte: int
) -> None:
    content = bytearray(encoded(suffix))
    content[where] = byte
    try:
        decoded = read_image(saved(tmp_path, "a", bytes(content)))
    except CorruptImageError as error:
        assert str(tmp_path / "a") in str(error)  # noqa: PT017 - both ends are right
    else:
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


def test_a_file_that_vanishes_before_the_survey_or_while_it_is_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (saved(tmp_path, name, encoded(".png")) for name in ("1.png", "2.png"))
    frame = frame_of(one, other)
    other.unlink()
    for look in (lambda: files_digest(frame), lambda: survey_images(frame, tmp_path / "cache", progress=False)):
        with pytest.raises(CorruptImageError, match=r"2\.png: the file is gone"):
            look()
    saved(tmp_path, "2.png", encoded(".png"))

    def late(files: pd.DataFrame) -> str:
        found = files_digest(files)
        other.unlink()  # between the look at its state and the decoding
        return found

    monkeypatch.setattr("leukofold.images.reading.files_digest", late)
    with pytest.raises(UserError, match=r"1 of 2 images are unreadable: .*2\.png: the file is gone"):
        survey_images(frame, tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("*.np?"))


def test_all_unreadable_files_are_named_in_order(tmp_path: Path) -> None:
    good = str(saved(tmp_path, "good.jpg", encoded(".jpg")))
    empty, text = str(saved(tmp_path, "empty.jpg", b"")), str(saved(tmp_path, "text.jpg", b"none"))
    gone = str(tmp_path / "gone.jpg")
    faults = unreadable_images([text, good, empty, good, gone], workers=3, progress=False)
    assert [fault.split(":")[0] for fault in faults] == [text, empty, gone]
    assert unreadable_images([], progress=False) == []


def frame_of(*paths: Path) -> pd.DataFrame:
    return pd.DataFrame({"path": [path.as_posix() for path in paths]})


def test_unreadable_images_are_counted_and_the_first_few_named(tmp_path: Path) -> None:
    good = saved(tmp_path, "good.jpg", encoded(".jpg"))
    bad = [saved(tmp_path, f"bad{i}.jpg", b"") for i in range(7)]
    with pytest.raises(UserError, match=r"7 of 8 images are unreadable: .*bad0\.jpg.*bad4\.jpg.*and 2 more") as caught:
        survey_images(frame_of(good, *bad), tmp_path / "cache", progress=False)
    assert "bad5" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.np?"))


def damage_unseen(path: Path) -> None:
    """Spoils a file but leaves its size and time of change, so that only decoding it could tell."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_survey_hashes_every_image_in_the_order_of_the_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pixels = [rng.integers(0, 256, (90, 80, 3), dtype=np.uint8) for _ in range(25)]
    paths = [saved(tmp_path, f"{i}.png", encoded(".png", one)) for i, one in enumerate(pixels)]
    for order in (range(25), range(24, -1, -1)):
        hashes = survey_images(frame_of(*(paths[i] for i in order)), tmp_path / "cache", progress=False)
        assert hashes.shape == (25, 32)
        assert hashes.dtype == np.uint8
        assert np.array_equal(hashes, [perceptual_hash(pixels[i]) for i in order])
    assert len(list((tmp_path / "cache" / "surveys").glob("*.npz"))) == 2


def test_an_empty_set_has_an_empty_survey(tmp_path: Path) -> None:
    for _ in range(2):
        assert survey_images(frame_of(), tmp_path / "cache", progress=False).shape == (0, 32)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "another set's", "pickled"])
def test_a_damaged_survey_is_made_again(tmp_path: Path, damage: str) -> None:
    frame = frame_of(*(saved(tmp_path, f"{i}.png", encoded(".png")) for i in range(3)))
    hashes = survey_images(frame, tmp_path / "cache", progress=False)
    (stored,) = (tmp_path / "cache" / "surveys").glob("*.npz")
    if damage in ("another set's", "pickled"):
        np.savez(stored, hashes=hashes[:2] if damage == "another set's" else np.array([{}]))
    else:
        whole = stored.read_bytes()
        place = whole.index(hashes.tobytes()) + 5  # in one of the hashes
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        stored.write_bytes({"truncated": whole[:-20], "flipped": flipped, "empty": b"", "text": b"none"}[damage])
    assert np.array_equal(survey_images(frame, tmp_path / "cache", progress=False), hashes)
    assert np.array_equal(np.load(stored)["hashes"], hashes)


def test_the_digest_of_files_changes_with_path_size_time_and_order(tmp_path: Path) -> None:
    one, other = saved(tmp_path, "1.png", b"12"), saved(tmp_path, "2.png", b"34")
    os.utime(one, ns=(5, 5))
    os.utime(other, ns=(5, 5))
    seen = [files_digest(frame_of(one, other)), files_digest(frame_of(other, one)), files_digest(frame_of(one))]
    os.utime(one, ns=(5, 6))
    seen.append(files_digest(frame_of(one, other)))
    one.write_bytes(b"123")
    os.utime(one, ns=(5, 6))
    seen.append(files_digest(frame_of(one, other)))
    assert len(set(seen)) == len(seen)
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in seen)


def test_a_set_that_passed_is_not_decoded_again_but_a_changed_one_is(tmp_path: Path) -> None:
    one, other = (saved(tmp_path, name, encoded(".png")) for name in ("1.png", "2.png"))
    cache = tmp_path / "cache"
    survey_images(frame_of(one, other), cache, progress=False)
    damage_unseen(one)
    survey_images(frame_of(one, other), cache, progress=False)
    os.utime(one)
    with pytest.raises(UserError, match=r"1 of 2 images are unreadable: .*1\.png"):
        survey_images(frame_of(one, other), cache, progress=False)


def test_a_set_that_failed_is_decoded_again(tmp_path: Path) -> None:
    path = saved(tmp_path, "1.png", b"bad")
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 1 images are unreadable"):
            survey_images(frame_of(path), tmp_path / "cache", progress=False)
    path.write_bytes(encoded(".png"))
    survey_images(frame_of(path), tmp_path / "cache", progress=False)


def test_a_set_is_its_own_files_only(tmp_path: Path) -> None:
    one, other = saved(tmp_path, "1.png", encoded(".png")), saved(tmp_path, "2.png", b"bad")
    survey_images(frame_of(one), tmp_path / "cache", progress=False)
    with pytest.raises(UserError, match=r"2\.png"):
        survey_images(frame_of(one, other), tmp_path / "cache", progress=False)
