"""WBCBench phase 2's degradations: uneven light, defocus and sensor noise at four severities."""

import csv
import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import beside, write_json
from leukofold.images.reading import IMAGE_SUFFIXES, read_image
from leukofold.processes import available_cores
from leukofold.rendering import rendered_info, texture

MAX_SEVERITY = 4

BLUR_SIGMA = (0.0, 0.8, 1.4, 2.1, 3.0)
"""Largest standard deviation of the blur in pixels, by severity."""

NOISE_SIGMA = (0.0, 6.0, 11.0, 18.0, 27.0)
"""Largest standard deviation of the noise in grey levels, by severity."""

LIGHT_SHIFT = (0.0, 0.07, 0.13, 0.20, 0.28)
"""Largest relative change of the light, by severity."""

LIST = "degraded.csv"  # what a degraded folder says of its images
QUALITY = 90  # of the JPEGs it holds


def degrade(image: NDArray[np.uint8], severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Degrades an image the way a worse microscope would: light first, then optics, then sensor.

    Each of the three gets a random share, between 45 and 100 %, of the severity's largest value, so that
    images of one severity differ in which fault dominates.

    Args:
        image: (H, W, 3) uint8 RGB.
        severity: 0 (unchanged) to 4.
        rng: source of shares, directions and noise.

    Returns:
        (H, W, 3) uint8 RGB; the same array when severity is 0.

    Raises:
        ValueError: severity is outside 0 to 4.
    """
    if not 0 <= severity <= MAX_SEVERITY:
        raise ValueError(f"severity must be 0 to {MAX_SEVERITY}, not {severity}")
    if severity == 0:
        return image
    shares = rng.uniform(0.45, 1.0, 3)
    height, width = image.shape[:2]
    shift = LIGHT_SHIFT[severity] * shares[0]
    gain = 1 + shift * (rng.choice([-1.0, 0.6]) + 0.25 * rng.normal(0, 0.5, 3))  # brightness and colour cast
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(0.6 * shift * np.cos(angle))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(0.6 * shift * np.sin(angle))
    field = 1 + x + y
    lit = cv2.merge([image[:, :, channel] * (field * np.float32(gain[channel])) for channel in range(3)])
    blurred = cv2.GaussianBlur(lit, (0, 0), BLUR_SIGMA[severity] * shares[1])
    white = texture.noise_tile(0.0)
    noise = cv2.merge([texture.crop(white, (height, width), rng) for _ in range(3)])
    noisy = cv2.addWeighted(blurred, 1, noise, NOISE_SIGMA[severity] * shares[2], 0.5)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def degrade_folder(
    source: Path, target: Path, seed: int = 0, shares: Sequence[float] | None = None, progress: bool = True
) -> dict[str, int]:
    """Copies a folder tree and degrades each of its images as WBCBench's phase 2 does.

    An image's severity and degradation depend on the seed and its path below ``source`` alone. All images, also
    those of severity 0, are encoded anew as JPEG, so that nothing but the degradation sets them apart; one of
    another format gets the ending ``.jpg``. Other files are copied as they are (``rendered_truth.csv`` tells the
    severity before), but for a ``rendered.json``, which also says that the folder was degraded. ``degraded.csv``
    tells each image's ``path`` and ``severity``.

    Args:
        source: folder of images, however nested.
        target: folder to create, absent or empty; it is written beside and renamed.
        seed: of severities and degradations.
        shares: shares of the severities 0 to 4; None: those of WBCBench's phase2_train, as the renderer has them.
        progress: whether to show a progress bar.

    Returns:
        Each image's path below ``target`` and its severity, sorted by path.

    Raises:
        UserError: ``source`` has no images or one that cannot be decoded, two would get one name, or ``target``
            holds something or lies in ``source``.
    """
    from leukofold.rendering.wbcbench import SEVERITIES  # late: that module degrades what it draws

    mix = np.array(SEVERITIES["phase2_train"] if shares is None else shares)
    images = _images_below(source)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: is not an empty folder; name another one")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies in {source}, whose images are to be degraded; name a folder elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target, "degrading")
    try:
        shutil.copytree(source, temporary, ignore=_images_among, ignore_dangling_symlinks=True)
        severities = _degrade_all(source, temporary, images, seed, mix, progress)
        _say_so(temporary, severities, seed, mix)
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return severities


def _degrade_all(
    source: Path, target: Path, images: dict[str, str], seed: int, mix: NDArray[np.float64], progress: bool
) -> dict[str, int]:
    """Writes the copies of all images, with a thread per core; returns the severity of each."""

    def copy(names: tuple[str, str]) -> int:
        # of a generator by the path, so that neither order nor other images matter
        digits = hashlib.sha256(names[1].encode()).digest()[:8]
        return _degraded_copy(source / names[1], target / names[0], [seed, *digits], mix)

    with ThreadPoolExecutor(available_cores()) as pool:
        made = pool.map(copy, images.items())
        bar = tqdm(made, total=len(images), desc="degrading images", unit="image", disable=not progress)
        try:
            return dict(zip(images, bar, strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _say_so(folder: Path, severities: dict[str, int], seed: int, mix: NDArray[np.float64]) -> None:
    """Writes the list of severities, and into the stamp of a rendered folder that it is no more as it was drawn."""
    with (folder / LIST).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "severity"), *severities.items()])
    drawn = rendered_info(folder)
    if drawn is not None:
        write_json(folder / "rendered.json", {**drawn, "degraded": {"seed": seed, "shares": mix.tolist()}})


def _images_among(_: str, names: list[str]) -> list[str]:
    """Returns the images among a folder's files, which are not copied as they are."""
    return [name for name in names if _is_image(name)]


def _is_image(name: str) -> bool:
    """Tells an image by its file's name; what a Mac's archiver leaves beside it (``._NAME``) is none."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")


def _images_below(source: Path) -> dict[str, str]:
    """Returns the path that each image's copy gets -> the path it has, both below ``source``, sorted."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    images: dict[str, str] = {}
    files = (Path(folder) / name for folder, _, names in os.walk(source, followlinks=True) for name in names)
    for path in sorted(files):
        if _is_image(path.name) and path.is_file():
            relative = path.relative_to(source)
            copy = relative if path.suffix.lower() in (".jpg", ".jpeg") else relative.with_suffix(".jpg")
            if copy.as_posix() in images:
                raise UserError(f"{path}: its copy would be called {copy}, as another image's; rename one of them")
            images[copy.as_posix()] = relative.as_posix()
    if not images:
        raise UserError(f"{source}: no images ({', '.join(IMAGE_SUFFIXES)}) in it")
    return dict(sorted(images.items()))


def _degraded_copy(source: Path, target: Path, seed: Sequence[int], mix: NDArray[np.float64]) -> int:
    """Writes one image's copy and returns the severity that was drawn for it."""
    rng = np.random.default_rng(seed)
    severity = int(rng.choice(MAX_SEVERITY + 1, p=mix))
    bgr = cv2.cvtColor(degrade(read_image(source), severity, rng), cv2.COLOR_RGB2BGR)
    target.write_bytes(bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]))
    return severity
