"""Kinds of images, against Pillow: each is read right, or refused in one line; nothing hangs or fills memory."""

import io
import os
import re
import resource
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from leukofold.errors import UserError
from leukofold.images.reading import CorruptImageError, read_image, unreadable_images

ANY_FOLDER = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORIENTATION = 0x112


def smooth(height: int = 60, width: int = 50) -> np.ndarray:
    """RGB blobs that JPEG keeps well."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


RGB = smooth()
GREY = RGB[..., 0]
ALPHA = np.arange(60 * 50, dtype=np.int64).reshape(60, 50, 1).astype(np.uint8)  # all values, 0 among them
DEEP = np.random.default_rng(1).integers(0, 65536, (60, 50, 3), dtype=np.uint16)
IMAGE = Image.fromarray(RGB)


def pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels))[1])


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return exif


def read(folder: Path, content: bytes) -> np.ndarray:
    path = folder / "cell.jpg"
    path.write_bytes(content)
    return read_image(path)


def refusal(folder: Path, content: bytes) -> str:
    """The line that a file is refused by."""
    with pytest.raises(CorruptImageError, match=r"cell\.jpg: ") as refused:
        read(folder, content)
    line = str(refused.value)
    assert "\n" not in line
    return line.partition("cell.jpg: ")[2]


PALETTE = IMAGE.convert("P", palette=Image.Palette.ADAPTIVE, colors=40)
BILEVEL = IMAGE.convert("1")
LIKE_PILLOW: dict[str, bytes] = {
    "progressive JPEG": pillow(IMAGE, "JPEG", progressive=True),
    "JPEG without subsampling": pillow(IMAGE, "JPEG", subsampling=0),
    "JPEG stored as RGB": pillow(IMAGE, "JPEG", keep_rgb=True),
    "grey JPEG": pillow(Image.fromarray(GREY), "JPEG"),
    "CMYK JPEG, inverted as Adobe does": pillow(IMAGE.convert("CMYK"), "JPEG"),
    "palette PNG": pillow(PALETTE, "PNG"),
    "palette PNG with a transparent colour": pillow(PALETTE, "PNG", transparency=3),
    "1-bit PNG": pillow(BILEVEL, "PNG"),
    "grey PNG with alpha": pillow(Image.fromarray(np.concatenate([GREY[..., None], ALPHA], axis=2), "LA"), "PNG"),
    "RGBA PNG": pillow(Image.fromarray(np.concatenate([RGB, ALPHA], axis=2)), "PNG"),
    "RGB PNG with a transparent colour": pillow(IMAGE, "PNG", transparency=tuple(RGB[3, 4].tolist())),
    "palette BMP": pillow(PALETTE, "BMP"),
    "1-bit BMP": pillow(BILEVEL, "BMP"),
    "RGBA BMP": pillow(Image.fromarray(np.concatenate([RGB, ALPHA], axis=2)), "BMP"),
    "grey TIFF": pillow(Image.fromarray(GREY), "TIFF"),
    "TIFF whose white is 0": tiff(GREY, photometric="miniswhite"),
    "palette TIFF": pillow(PALETTE, "TIFF"),
    "1-bit TIFF": pillow(BILEVEL, "TIFF"),
    "fax TIFF": pillow(BILEVEL, "TIFF", compression="group4"),
    "LZW TIFF": pillow(IMAGE, "TIFF", compression="tiff_lzw"),
    "JPEG in TIFF": pillow(IMAGE, "TIFF", compression="jpeg"),
    "CMYK TIFF": pillow(IMAGE.convert("CMYK"), "TIFF"),
    "big-endian TIFF": tiff(RGB, photometric="rgb", byteorder=">"),
    "BigTIFF": tiff(RGB, photometric="rgb", bigtiff=True),
    "tiled TIFF": tiff(np.tile(RGB, (3, 3, 1)), photometric="rgb", tile=(64, 64)),
    "TIFF of a plane per colour": tiff(np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb"),
    "opaque RGBA TIFF": pillow(IMAGE.convert("RGBA"), "TIFF"),
} | {
    f"{kind} of orientation {k}": pillow(IMAGE, kind, exif=turned(k))
    for kind in ("JPEG", "PNG", "TIFF")
    for k in range(2, 9)
}


@pytest.mark.parametrize("kind", LIKE_PILLOW)
def test_each_kind_is_read_as_pillow_reads_it(tmp_path: Path, kind: str) -> None:
    opened = Image.open(io.BytesIO(LIKE_PILLOW[kind]))
    expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), dtype=int)
    decoded = read(tmp_path, LIKE_PILLOW[kind])
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= (1 if "CMYK" in kind or "JPEG" in kind else 0)


def test_a_cmyk_jpeg_without_adobes_mark_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    content = LIKE_PILLOW["CMYK JPEG, inverted as Adobe does"]
    at = content.index(b"\xff\xee")
    plain = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"), dtype=int)
    assert np.abs(read(tmp_path, plain) - expected).max() <= 1


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    decoded = read(tmp_path, pillow(IMAGE, "JPEG", quality=95, exif=turned(6)))
    assert np.abs(decoded.astype(int) - np.rot90(RGB, -1)).mean() < 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png16(DEEP), DEEP),
        (png16(DEEP[..., 0]), DEEP[..., :1].repeat(3, 2)),
        (tiff(DEEP, photometric="rgb"), DEEP),
        (tiff(DEEP, photometric="rgb", byteorder=">"), DEEP),
        (tiff(DEEP[..., 0]), DEEP[..., :1].repeat(3, 2)),
        (tiff(DEEP[..., 0], photometric="miniswhite"), 65535 - DEEP[..., :1].repeat(3, 2)),
    ],
)
def test_of_16_bits_the_upper_8_are_taken(tmp_path: Path, content: bytes, expected: np.ndarray) -> None:
    assert np.abs(read(tmp_path, content) - expected / 257).max() <= 1


@pytest.mark.parametrize("make", [png16, tiff])
def test_a_cameras_12_bits_in_16_are_refused_and_not_read_as_black(
    tmp_path: Path, make: Callable[[np.ndarray], bytes]
) -> None:
    assert "16 bits, of which the upper 4 are not used" in refusal(tmp_path, make(DEEP[..., 0] >> 4))
    assert read(tmp_path, make((DEEP[..., 0] >> 4) + 256)).max() == 16


RGBA = np.concatenate([RGB, ALPHA], axis=2)
REFUSED: dict[str, tuple[bytes, str]] = {
    "GIF": (pillow(IMAGE, "GIF"), "holds GIF, whatever its name says; convert it to PNG"),
    "WebP": (pillow(IMAGE, "WEBP"), "holds WebP"),
    "AVIF": (pillow(IMAGE, "AVIF"), "holds AVIF or HEIF"),
    "JPEG 2000": (pillow(IMAGE, "JPEG2000"), "holds JPEG 2000"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "holds SVG"),
    "bare SVG": (b"<svg/>", "holds SVG"),
    "PDF": (pillow(IMAGE, "PDF"), "holds PDF"),
    "PPM": (pillow(IMAGE, "PPM"), "not an image that can be decoded; download it again"),
    "text": (b"patient,label\n1,BA\n", "not an image"),
    "nothing": (b"", "the file is empty; download it again"),
    "one byte": (b"\xff", "not an image"),
    "JPEG without an image": (b"\xff\xd8\xff\xd9", "not an image"),
    "JPEG without a size": (b"\xff\xd8\xff\xda\0\x02\xff\xd9", "not an image"),
    "stack": (tiff(np.stack([RGB, RGB]), photometric="rgb"), "holds several images, as of a stack"),
    "floating-point TIFF": (tiff(GREY.astype(np.float32)), "holds floating-point numbers, of which black and white"),
    "32-bit TIFF": (tiff(GREY.astype(np.uint32)), "holds 32-bit numbers"),
    "signed TIFF": (tiff(GREY.astype(np.int16)), "holds signed numbers"),
    "L*a*b* TIFF": (pillow(ImageOps.grayscale(IMAGE).convert("RGB"), "TIFF").replace(
        struct.pack("<HHIHH", 262, 3, 1, 2, 0), struct.pack("<HHIHH", 262, 3, 1, 8, 0)
    ), "holds colours of a rare kind (photometric 8); save it as RGB"),
    "transparent TIFF": (pillow(Image.fromarray(RGBA), "TIFF"), "a TIFF with transparent pixels; save it without"),
    "transparent 16-bit TIFF": (
        tiff(np.concatenate([DEEP, DEEP[..., :1]], axis=2), photometric="rgb", extrasamples=["unassalpha"]),
        "a TIFF with transparent pixels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_one_right_reading_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    content, said = REFUSED[kind]
    assert refusal(tmp_path, content).startswith(said)


def test_smaller_versions_beside_an_image_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(GREY > 9, subfiletype=4)
    assert np.array_equal(read(tmp_path, buffer.getvalue()), RGB)


def huge(kind: str, side: int) -> bytes:
    """A file of a few bytes that declares so many pixels per side."""
    if kind == "JPEG":
        content = bytearray(pillow(IMAGE, "JPEG"))
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, side, side)
    elif kind == "PNG":
        content = bytearray(pillow(IMAGE, "PNG"))
        struct.pack_into(">II", content, 16, side, side)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    elif kind == "BMP":
        content = bytearray(pillow(IMAGE, "BMP"))
        struct.pack_into("<ii", content, 18, side, -side)
    else:
        content = bytearray(pillow(IMAGE, "TIFF"))
        for tag, old in ((256, 50), (257, 60)):
            at = content.index(struct.pack("<HHII", tag, 4, 1, old))
            struct.pack_into("<I", content, at + 8, side)
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_a_small_file_that_declares_billions_of_pixels_is_refused_before_they_are_taken(
    tmp_path: Path, kind: str
) -> None:
    said = "declares 60000 x 60000 pixels, more than the 100 million that are read; cut it into smaller images"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(tmp_path, huge(kind, 60000)) == said
    assert refusal(tmp_path, huge(kind, 20000)).startswith("declares 20000 x 20000 pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; 400 million pixels are 1.2 GB


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    with path.open("wb") as file:
        file.write(b"II*\0")
        file.truncate(3_000_000_000)  # takes no room on the disk
    with pytest.raises(CorruptImageError, match=r"slide\.tif: 3\.0 GB are too large for an image; cut it up"):
        read_image(path)


def test_what_is_no_file_is_refused_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "absent")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    names = [
        "folder.jpg",
        "pipe.jpg",
        "nowhere.jpg",
        "loop.jpg",
        "absent.jpg",
        "folder.jpg/x.jpg/y",
        "n" * 300 + ".jpg",
    ]
    said = unreadable_images([f"{tmp_path}/{name}" for name in names], progress=False)
    assert [line.removeprefix(f"{tmp_path}/").replace("n" * 300, "n") for line in said] == [
        "folder.jpg: a folder, not a file",
        "pipe.jpg: not a file",
        "nowhere.jpg: the file is gone",
        "loop.jpg: cannot be read: Too many levels of symbolic links",
        "absent.jpg: the file is gone",
        "folder.jpg/x.jpg/y: the file is gone",
        "n.jpg: cannot be read: File name too long",
    ]


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(pillow(IMAGE, "JPEG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def denied(name: str, flags: int) -> int:
            raise PermissionError(13, "Permission denied", name)

        monkeypatch.setattr("leukofold.images.reading.os.open", denied)
    with pytest.raises(CorruptImageError, match=r"secret\.jpg: cannot be read: Permission denied"):
        read_image(path)
    path.chmod(stat.S_IRWXU)


def test_a_cut_behind_the_preview_of_a_camera_is_seen(tmp_path: Path) -> None:
    preview = pillow(IMAGE.resize((16, 16)), "JPEG")
    content = pillow(IMAGE, "JPEG")
    app1 = b"\xff\xe1" + (len(preview) + 8).to_bytes(2, "big") + b"Exif\0\0" + preview
    whole = content[:2] + app1 + content[2:]
    assert np.array_equal(read(tmp_path, whole), read(tmp_path, content))
    start = whole.index(b"\xff\xda", 2 + len(app1)) + 14
    assert b"\xff\xd9" in whole[: start + 40][-1024:]
    assert refusal(tmp_path, whole[: start + 40]) == "the file is cut short; download it again"


def test_a_jpeg_with_bytes_behind_its_end_is_read(tmp_path: Path) -> None:
    content = pillow(IMAGE, "JPEG")
    assert np.array_equal(read(tmp_path, content + bytes(5000)), read(tmp_path, content))


def test_a_flipped_bit_in_the_pixels_of_a_png_is_seen(tmp_path: Path) -> None:
    content = bytearray(pillow(IMAGE, "PNG"))
    content[content.index(b"IDAT") + 500] ^= 1
    assert refusal(tmp_path, bytes(content)).startswith("the file is damaged, a checksum of its pixels or header is")


DAMAGED = {
    kind: content for kind, content in LIKE_PILLOW.items() if "orientation" not in kind
} | {
    "JPEG": pillow(IMAGE, "JPEG"),
    "JPEG of orientation 6": pillow(IMAGE, "JPEG", exif=turned(6)),
    "PNG": pillow(IMAGE, "PNG"),
    "16-bit PNG": png16(DEEP),
    "BMP": pillow(IMAGE, "BMP"),
    "TIFF": pillow(IMAGE, "TIFF"),
    "zlib TIFF": tiff(RGB, photometric="rgb", compression="zlib"),
    "TIFF of strips": tiff(RGB, photometric="rgb", rowsperstrip=8),
    "16-bit TIFF": tiff(DEEP, photometric="rgb"),
}  # fmt: skip


FLIP = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))  # where, and the byte put there
STARTS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0"]


@ANY_FOLDER
@given(kind=st.sampled_from(sorted(DAMAGED)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_anywhere_is_refused_or_an_image(tmp_path: Path, kind: str, share: float) -> None:
    content = DAMAGED[kind]
    cut = content[: int(share * len(content))]
    try:
        decoded = read(tmp_path, cut)
    except CorruptImageError as error:
        assert str(error).startswith(f"{tmp_path}/cell.jpg: ")  # noqa: PT017 - both ends are right
    else:
        assert np.array_equal(decoded, read(tmp_path, content))  # what is missing was not needed


@ANY_FOLDER
@given(st.sampled_from(sorted(DAMAGED)), st.lists(FLIP, min_size=1, max_size=4), st.booleans())
@example(kind="BigTIFF", flips=[(0.15, 255)], early=False)
def test_a_file_with_flipped_bytes_is_refused_or_an_image(
    tmp_path: Path, kind: str, flips: list[tuple[float, int]], early: bool
) -> None:
    content = bytearray(DAMAGED[kind])
    for share, byte in flips:
        content[int(share * min(len(content), 200 if early else len(content)))] = byte
    try:
        decoded = read(tmp_path, bytes(content))
    except CorruptImageError as error:
        assert str(error).startswith(f"{tmp_path}/cell.jpg: ")  # noqa: PT017 - both ends are right
    else:
        assert decoded.dtype == np.uint8
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(STARTS), st.binary(max_size=80))
@example(b"II*\0", bytes(4))  # no directory
@example(b"II+\0", b"\x08\0\0\0" + b"\xff" * 8)  # beyond what a number of this machine holds
def test_no_bytes_whatever_do_more_than_be_refused(tmp_path: Path, start: bytes, rest: bytes) -> None:
    with pytest.raises(CorruptImageError):
        read(tmp_path, start + rest)


def test_a_tiff_of_thousands_of_pages_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    page = struct.pack("<HHHII", 1, 254, 4, 1, 1)  # one tag: a smaller version of the image
    size = len(page) + 4
    pages = [page + struct.pack("<I", 8 + size * (k + 1)) for k in range(5000)]
    first = struct.pack("<HHHIIHHII", 2, 256, 4, 1, 8, 257, 4, 1, 8)
    start = 8 + size * len(pages)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + b"".join(pages) + first + struct.pack("<I", 8))
    with pytest.raises(CorruptImageError, match=r"pages\.tif: holds several images, as of a stack"):
        read_image(path)


def test_a_directory_of_a_tiff_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    content = bytearray(pillow(IMAGE, "TIFF"))
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    assert np.array_equal(read(tmp_path, bytes(content)), RGB)


def test_nothing_is_written_beside_the_refusal_of_a_damaged_file(tmp_path: Path) -> None:
    for number, kind in enumerate(("PNG", "TIFF", "zlib TIFF", "LZW TIFF")):
        content = DAMAGED[kind]
        (tmp_path / f"{number}.jpg").write_bytes(content[:200] + bytes(50) + content[250:-40])
    program = (
        "import sys\nfrom leukofold.images.reading import unreadable_images\n"
        "print(len(unreadable_images(sys.argv[1:], progress=False)))"
    )
    paths = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4"
    assert done.stderr == ""


def test_every_refusal_is_an_error_for_people() -> None:
    assert issubclass(CorruptImageError, UserError)
    assert not re.search("  ", " ".join(said for _, said in REFUSED.values()))
