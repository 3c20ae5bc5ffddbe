"""The image cache, denoising and the comparison of hashes, each against the plain way."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage.restoration import denoise_nl_means

from leukofold.augment import Augmentation
from leukofold.benchmarks.measuring import Report, take_turns
from leukofold.competitions import get_competition
from leukofold.config import DenoiseConfig, ImageConfig
from leukofold.duplicates import HASH_DISTANCE, candidate_pairs
from leukofold.images.cache import open_cache
from leukofold.images.cellimages import CellImages
from leukofold.images.denoising import Denoising, denoise_batch, nonlocal_means, search_distance
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.loaders import CellDataset
from leukofold.processes import available_cores
from leukofold.rendering import RenderSpec, render
from leukofold.rendering.cell import draw_image
from leukofold.rendering.stain import sample_appearance

TURNS = 3
DENOISING_TARGET, DENOISING_TARGET_ON_GPU = 3.0, 100.0  # times scikit-image
EQUAL = 45.0  # dB between two outputs that count as equal


def cache(report: Report, images: int | None) -> None:
    """Training images through the image cache, against decoding, denoising and resizing each one every time."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wbcbench"
        render("wbcbench", root, RenderSpec(images=images or 600, test_images=20, patients=30))
        frame = get_competition("wbcbench").read(root).labelled
        for title, denoising in (("plain", None), ("denoised", DenoiseConfig())):
            report.begin(f"{title}, {len(frame)} images of 368 pixels, to 224, augmented, one process")
            _compare_sources(report, frame, ImageConfig(size=224, denoise=denoising), Path(folder))


def _compare_sources(report: Report, frame: pd.DataFrame, config: ImageConfig, folder: Path) -> None:
    """Times the cache against the files, at one setting of the preparation."""
    preparation, augmentation = Preparation(config, lambda image: image), Augmentation(config.augment)
    report.time(
        "building the cache, all cores, once", len(frame), lambda: open_cache(frame, preparation, "", folder, False)
    )
    prepared = CellImages([open_cache(frame, preparation, "", folder, False)])
    plain, augmented = CellDataset(prepared, frame), CellDataset(prepared, frame, augmentation)
    rows = range(0, len(frame), 3)
    ways: dict[str, Callable[[], object]] = {
        "from the cache, not augmented": lambda: [plain[(row, row)] for row in rows],
        "from the cache, every epoch": lambda: [augmented[(row, row)] for row in rows],
        "from the files, every epoch": lambda: [
            augmentation(preparation(read_image(frame.path[row]))[None], row) for row in rows
        ],
    }
    seconds = {name: float(np.median(taken)) for name, taken in take_turns(ways, TURNS).items()}
    for name, taken in seconds.items():
        report.add_rate(name, len(rows), taken)
    report.add_ratio(
        "from the cache / from the files",
        seconds["from the files, every epoch"] / seconds["from the cache, every epoch"],
    )


def denoise(report: Report, images: int | None) -> None:
    """Our non-local means against scikit-image's fast mode at the same settings, on rendered cells with known noise."""
    rng = np.random.default_rng(0)
    clean = [draw_image("SNE", sample_appearance(rng), rng) for _ in range(images or 12)]
    for sigma in (3.0, 9.0, 16.0):
        noisy = [np.clip(image + rng.normal(0, sigma, image.shape) + 0.5, 0, 255).astype(np.uint8) for image in clean]
        _compare_denoisers(report, clean, noisy, sigma)


def _compare_denoisers(report: Report, clean: list[np.ndarray], noisy: list[np.ndarray], sigma: float) -> None:
    """Times both at one strength of noise, and prints how close they come to the clean images and to each other.

    With patches of 3 pixels the two do not do the same: scikit-image's fast mode sums 2 x 2 differences where 3 x 3
    are meant (p - 1 rows and columns of p). The larger the patch, the less that matters; 7 is its default.
    """
    distance = search_distance(sigma)
    for patch in (3, 5, 7):
        settings = Denoising(patch_size=patch)
        report.begin(
            f"noise {sigma:.0f} of 255, {len(clean)} images of 368 pixels, patch {patch}, distance {distance}"
            f"{', our default' if settings == Denoising() else ''}"
        )
        ours = partial(nonlocal_means, sigma=sigma, settings=settings)
        theirs = partial(_scikit_image, sigma=sigma, settings=settings)
        ways = {f"{name}, {how}": partial(work, one, noisy) for name, one in (("ours", ours), ("scikit-image", theirs))
                for how, work in (("one at a time", _singly), ("a thread per core", _in_threads))}  # fmt: skip
        if torch.cuda.is_available():
            ways["ours, on the GPU"] = partial(_on_gpu, noisy, settings)
            ways["ours, on the GPU"]()  # its kernels are chosen
        best = {name: float(np.min(taken)) for name, taken in take_turns(ways, TURNS).items()}
        for name, seconds in best.items():
            report.add_rate(name, len(clean), seconds)
        between = _compare_outputs(
            report, clean, noisy, [ours(image) for image in noisy], [theirs(image) for image in noisy]
        )
        target, on_gpu = (DENOISING_TARGET, DENOISING_TARGET_ON_GPU) if between >= EQUAL else (None, None)
        singly, threads = best["scikit-image, one at a time"], "a thread per core"
        report.add_ratio("one at a time, both on one core", singly / best["ours, one at a time"])
        report.add_ratio("both with a thread per core", best[f"scikit-image, {threads}"] / best[f"ours, {threads}"])
        report.add_ratio(
            f"all {available_cores()} cores / scikit-image's call", singly / best[f"ours, {threads}"], target
        )
        if "ours, on the GPU" in best:
            report.add_ratio("GPU / scikit-image's call", singly / best["ours, on the GPU"], on_gpu)
    if not torch.cuda.is_available():
        report.not_measured("ours, on the GPU", "no GPU here", "python scripts/benchmark.py denoise --images 64")


def _scikit_image(image: np.ndarray, sigma: float, settings: Denoising) -> np.ndarray:
    """Denoises as scikit-image does in its fast mode."""
    filtered = denoise_nl_means(
        image.astype(np.float32),
        patch_size=settings.patch_size,
        patch_distance=search_distance(sigma),
        h=settings.strength * sigma,
        sigma=sigma,
        channel_axis=-1,
    )
    return np.asarray(np.clip(np.rint(filtered), 0, 255), np.uint8)


def _singly(work: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray]) -> None:
    """Does some work on one image after the other."""
    for image in images:
        work(image)


def _in_threads(work: Callable[[np.ndarray], np.ndarray], images: list[np.ndarray]) -> None:
    """Does some work on images in as many threads as there are cores."""
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(work, images))


def _on_gpu(images: list[np.ndarray], settings: Denoising) -> None:
    """Denoises images together, from the computer's memory to the computer's memory."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    denoise_batch(batch.to("cuda"), settings).cpu()


def _compare_outputs(
    report: Report,
    clean: list[np.ndarray],
    noisy: list[np.ndarray],
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
) -> float:
    """Prints how far outputs are from the clean images and from each other; returns the latter, dB."""
    between = _psnr(ours, theirs)
    figures = {
        "noisy_to_clean": _psnr(clean, noisy),
        "ours_to_clean": _psnr(clean, ours),
        "scikit_image_to_clean": _psnr(clean, theirs),
        "ours_to_scikit_image": between,
    }
    report.add(
        "PSNR in dB",
        f"to the clean image: noisy {figures['noisy_to_clean']:.2f}, ours {figures['ours_to_clean']:.2f}, scikit-image "
        f"{figures['scikit_image_to_clean']:.2f}; between the two {between:.2f} "
        f"({'equal' if between >= EQUAL else 'not equal'}: {EQUAL:.0f})",
        figures,
    )
    return between


def _psnr(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Returns the mean peak signal-to-noise ratio of pairs of images, dB."""
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(one, other, strict=True)]
    return float(np.mean([10 * np.log10(255**2 / error) for error in errors]))


def duplicates(report: Report, images: int | None) -> None:
    """All pairs of hashes by matrix products, against one hash after the other."""
    count, rng = images or 100_000, np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    hashes[-100:] = hashes[:100]
    report.begin(f"{count} hashes of 256 bits, 100 of them twice")
    products = report.time("matrix products, all pairs", count, lambda: candidate_pairs(hashes, HASH_DISTANCE))
    some = min(count, 500)

    def one_by_one() -> None:
        for k in range(some):
            np.flatnonzero(np.bitwise_count(hashes[k] ^ hashes).sum(axis=1) <= HASH_DISTANCE)

    singly = report.time("one hash against all, popcount", some, one_by_one)
    report.add_ratio("matrix products / one by one", singly * count / some / products)
