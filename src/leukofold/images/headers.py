"""What an image file says of itself before a pixel is decoded: its size, its depth, and whether it is all there.

Decoders take what they are given: they fill the missing rest of a cut file with grey, take gigabytes for a file of a
few bytes that declares as many pixels, and the first of several pages for the image. So each file's own structure is
looked at first: the markers of a JPEG (ITU-T T.81, annex B), the chunks of a PNG (W3C PNG, third edition, section 5),
the header of a BMP, the directories of a TIFF (TIFF 6.0, section 2, and BigTIFF's wider ones).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

AGAIN = "download it again"
NO_IMAGE = f"not an image that can be decoded; {AGAIN}"
CUT_SHORT = f"the file is cut short; {AGAIN}"
STACK = "holds several images, as of a stack; save the one that is meant by itself"

_MOST_PAGES = 64  # of a TIFF: an image, its smaller versions and masks

_PNG = b"\x89PNG\r\n\x1a\n"
_OTHERS = {
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "AVIF or HEIF": rb"....ftyp(avi[fs]|hei[cfsx]|hev[cx]|mif1|msf1)",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE\s+svg.*?>\s*)?<svg\b",
    "PDF": rb"%PDF-",
}  # what images are called image.jpg all the same, by their first bytes
_SIZED = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers of JPEG that start a frame, and tell its size
_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # those without a length
_TAGS = {254, 256, 257, 258, 262, 273, 279, 324, 325, 338, 339}
"""Of TIFF: kind of page, width, height, bits, colours, strips and their sizes, tiles and theirs, transparency, kind of
number."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # its types of whole numbers
_COLOURS = {0, 1, 2, 3, 5, 6}  # its photometric interpretations that are read: grey, RGB, palette, CMYK, YCbCr
_RANGELESS = {2: "signed", 3: "floating-point"}  # sample formats


MOST_PIXELS = 100_000_000
"""Of one image: 300 MB once it is decoded. A cell has some 100,000, a microscope's field up to 30 million."""


class BadHeaderError(Exception):
    """A file that is no whole image of a kind that is read; says what is wrong and what to do."""


@dataclass(frozen=True)
class Header:
    """What a file declares.

    Attributes:
        width: Pixels, before it is turned as its orientation says.
        height: Pixels.
        bits: Of a sample.
        alpha: Whether it is a TIFF with a channel of transparency.
    """

    width: int
    height: int
    bits: int = 8
    alpha: bool = False

    def __post_init__(self) -> None:
        """Refuses an image without pixels, or with more than memory is to be taken for."""
        if self.width <= 0 or self.height <= 0:
            raise BadHeaderError(NO_IMAGE)
        if self.width * self.height > MOST_PIXELS:
            raise BadHeaderError(
                f"declares {self.width} x {self.height} pixels, more than the {MOST_PIXELS // 10**6} million that are "
                "read; cut it into smaller images"
            )


def read_header(encoded: bytes) -> Header:
    """Reads what a JPEG, PNG, BMP or TIFF file declares, and checks that it is whole.

    Args:
        encoded: The file.

    Returns:
        Its size and depth.

    Raises:
        BadHeaderError: It is of another kind, too large, cut short, damaged, or has no one right reading: several
            pages, numbers without a known range, or colours that are not defined.
    """
    try:
        if encoded.startswith(b"\xff\xd8\xff"):
            return _jpeg(encoded)
        if encoded.startswith(_PNG):
            return _png(encoded)
        if encoded.startswith(b"BM"):
            return _bmp(encoded)
        if encoded.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff(encoded)
    except (struct.error, IndexError, OverflowError):  # a number lies beyond the end
        raise BadHeaderError(CUT_SHORT) from None
    for name, start in _OTHERS.items():
        if re.match(start, encoded[:1024], re.DOTALL):
            raise BadHeaderError(f"holds {name}, whatever its name says; convert it to PNG")
    raise BadHeaderError(NO_IMAGE)


def _jpeg(encoded: bytes) -> Header:
    """Follows the markers to the size and the start of the image, after which its end has to come.

    The end is looked for behind the start only: the small preview in a camera's file has one of its own.
    """
    at, found = 2, None
    while (at := encoded.find(b"\xff", at)) >= 0:
        marker = encoded[at + 1]
        if marker == 0xFF:  # a byte of padding
            at += 1
        elif marker == 0xDA and found is not None:
            if encoded.rfind(b"\xff\xd9", at) < 0:
                raise BadHeaderError(CUT_SHORT)
            return found
        elif marker in (0xD9, 0xDA):
            raise BadHeaderError(NO_IMAGE)
        elif marker in _ALONE:
            at += 2
        else:
            if marker in _SIZED and found is None:
                bits, height, width = struct.unpack_from(">BHH", encoded, at + 4)
                found = Header(width, height, bits)
            at += 2 + int(struct.unpack_from(">H", encoded, at + 2)[0])
    raise BadHeaderError(CUT_SHORT)


def _png(encoded: bytes) -> Header:
    """Goes through the chunks: those that the image depends on have to be as they were written, to the last one."""
    kind, width, height, bits = struct.unpack_from(">4sIIB", encoded, 12)
    if kind != b"IHDR":
        raise BadHeaderError(NO_IMAGE)
    header = Header(width, height, bits)
    view, at = memoryview(encoded), len(_PNG)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", encoded, at)
        (written,) = struct.unpack_from(">I", encoded, at + 8 + length)
        critical = not kind[0] & 0x20  # an upper-case letter
        if critical and zlib.crc32(view[at + 4 : at + 8 + length]) != written:
            raise BadHeaderError(f"the file is damaged, a checksum of its pixels or header is wrong; {AGAIN}")
        at += 12 + length
    return header


def _bmp(encoded: bytes) -> Header:
    """Reads the header of either age; the rows of an image that is not compressed have to be there."""
    (size,) = struct.unpack_from("<I", encoded, 2)
    start, age = struct.unpack_from("<II", encoded, 10)
    if age == 12:  # the oldest, of 16 bits a number
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    header = Header(width, abs(height))  # below 0 where the first row is the upper one
    rows = (width * bits + 31) // 32 * 4 * abs(height) if compression in (0, 3) else 0
    if len(encoded) < max(size, start + rows):
        raise BadHeaderError(CUT_SHORT)
    return header


def _tiff(encoded: bytes) -> Header:
    """Reads the first directory, and refuses what it says if that has no one right reading."""
    directories = _directories(encoded)
    first = next(directories, {})

    def value(tag: int, default: int) -> int:
        return next(iter(first.get(tag, ())), default)

    header = Header(value(256, 0), value(257, 0), value(258, 1), value(338, 0) in (1, 2))
    for starts, sizes in ((273, 279), (324, 325)):  # of strips or tiles
        ends = map(sum, zip(first.get(starts, ()), first.get(sizes, ()), strict=False))
        if max(ends, default=0) > len(encoded):
            raise BadHeaderError(CUT_SHORT)
    if not all(others.get(254, (0,))[0] & 0b101 for others in directories):  # smaller versions and masks may be there
        raise BadHeaderError(STACK)
    kind, colours = value(339, 1), value(262, 2)
    if kind in _RANGELESS or header.bits > 16:
        what = _RANGELESS.get(kind, f"{header.bits}-bit")
        raise BadHeaderError(f"holds {what} numbers, of which black and white are not known; save it as 8 bits")
    if colours not in _COLOURS:
        raise BadHeaderError(f"holds colours of a rare kind (photometric {colours}); save it as RGB")
    return header


def _directories(encoded: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """Yields the directories of a TIFF or BigTIFF: the values of its tags of whole numbers."""
    order = "<" if encoded[:2] == b"II" else ">"
    big = 43 in encoded[2:4]
    count_as, entry, offset = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    head, room = struct.calcsize(order + entry), struct.calcsize(offset)
    seen = {0}
    (at,) = struct.unpack_from(order + offset, encoded, 8 if big else 4)
    while at not in seen:
        seen.add(at)
        if len(seen) > _MOST_PAGES:
            raise BadHeaderError(STACK)
        (count,) = struct.unpack_from(order + count_as, encoded, at)
        at += struct.calcsize(count_as)
        end = at + count * (head + room)
        (after,) = struct.unpack_from(order + offset, encoded, end)
        tags = {}
        for here in range(at, end, head + room):
            tag, kind, values = struct.unpack_from(order + entry, encoded, here)
            if tag in _TAGS and kind in _NUMBERS and values:
                form, value_at = f"{order}{values}{_NUMBERS[kind]}", here + head
                if struct.calcsize(form) > room:  # too many to stand in the entry itself
                    (value_at,) = struct.unpack_from(order + offset, encoded, value_at)
                tags[tag] = struct.unpack_from(form, encoded, value_at)
        yield tags
        at = after
