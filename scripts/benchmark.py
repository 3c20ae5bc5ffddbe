"""Compares two ways of doing a thing in one run, on rendered images.

    python scripts/benchmark.py cache          # training images from the cache, and decoded from their files
    python scripts/benchmark.py denoise        # our non-local means, and scikit-image's
    python scripts/benchmark.py duplicates     # all pairs of 100,000 hashes, by matrix products and one by one
    python scripts/benchmark.py blend          # every method of combining nine runs, judged by nested folds

Behaviours: creates nothing but temporary files; prints one line per measurement. Run it on a machine that
does nothing else.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from leukofold.cli import main_guard
from leukofold.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from leukofold.config import ImageConfig


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(BENCHMARKS), help="what to compare")
    parser.add_argument("--images", type=int, metavar="N", help="number of images or hashes")
    return parser.parse_args()


def timed(title: str, count: int, work: Callable[[], object]) -> None:
    """Runs some work once and prints images per second and milliseconds per image."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(
        f"  {title:<44} {count / seconds:9.0f} images/s  {1000 * seconds / count:8.3f} ms per image  {seconds:7.1f} s"
    )


def cache(images: int | None) -> None:
    """Training images through the image cache, against decoding, denoising and resizing each one every time."""
    from leukofold.competitions import get_competition
    from leukofold.config import DenoiseConfig, ImageConfig
    from leukofold.rendering import RenderSpec, render

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wbcbench"
        render("wbcbench", root, RenderSpec(images=images or 600, test_images=20, patients=30))
        frame = get_competition("wbcbench").read(root).labelled
        for title, denoising in (("plain", None), ("denoised", DenoiseConfig())):
            print(f"{title}, {len(frame)} images of 368 pixels, to 224, augmented, one process")
            _compare_sources(frame, ImageConfig(size=224, denoise=denoising), Path(folder))


def _compare_sources(frame: "pd.DataFrame", config: "ImageConfig", folder: Path) -> None:
    """Times the cache against the files, at one setting of the preparation."""
    from leukofold.augment import Augmentation
    from leukofold.images.cache import open_cache
    from leukofold.images.preparing import Preparation
    from leukofold.images.reading import read_image
    from leukofold.loaders import CellDataset

    preparation, augmentation = Preparation(config, lambda image: image), Augmentation(config.augment)
    timed("building the cache, all cores, once", len(frame), lambda: open_cache(frame, preparation, "", folder, False))
    dataset = CellDataset(open_cache(frame, preparation, "", folder, False), frame, augmentation)
    rows = range(0, len(frame), 3)
    timed("from the cache, every epoch", len(rows), lambda: [dataset[(row, row)] for row in rows])
    timed(
        "from the files, every epoch",
        len(rows),
        lambda: [augmentation(preparation(read_image(frame.path[row])), row) for row in rows],
    )


def denoise(images: int | None) -> None:
    """Our non-local means against scikit-image's fast mode at the same settings, on rendered cells with known noise."""
    import numpy as np

    from leukofold.rendering.cell import draw_image
    from leukofold.rendering.stain import sample_appearance

    rng = np.random.default_rng(0)
    clean = [draw_image("SNE", sample_appearance(rng), rng) for _ in range(images or 12)]
    for sigma in (3.0, 9.0, 16.0):
        noisy = [np.clip(image + rng.normal(0, sigma, image.shape) + 0.5, 0, 255).astype(np.uint8) for image in clean]
        _compare_denoisers(clean, noisy, sigma)


def _compare_denoisers(clean: "list[np.ndarray]", noisy: "list[np.ndarray]", sigma: float) -> None:
    """Times both at one strength of noise, and prints how close they come to the clean images and to each other."""
    import numpy as np
    from skimage.restoration import denoise_nl_means

    from leukofold.images.denoising import Denoising, nonlocal_means, search_distance

    settings, distance = Denoising(), search_distance(sigma)
    arguments = {"patch_size": settings.patch_size, "patch_distance": distance, "h": settings.strength * sigma}
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []

    def scikit_image() -> None:
        for image in noisy:
            filtered = denoise_nl_means(image.astype(np.float32), sigma=sigma, channel_axis=-1, **arguments)
            theirs.append(np.clip(np.rint(filtered), 0, 255).astype(np.uint8))

    def psnr(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(one, other, strict=True)]
        return float(np.mean([10 * np.log10(255**2 / error) for error in errors]))

    print(f"noise {sigma:.0f} of 255, {len(clean)} images of 368 pixels, patch distance {distance}, one at a time")
    timed("ours", len(clean), lambda: ours.extend(nonlocal_means(image, sigma, settings) for image in noisy))
    timed("scikit-image, fast mode", len(clean), scikit_image)
    print(
        f"  PSNR to the clean image: noisy {psnr(clean, noisy):.2f} dB, ours {psnr(clean, ours):.2f}, "
        f"scikit-image {psnr(clean, theirs):.2f}; ours to scikit-image {psnr(ours, theirs):.2f}"
    )


def duplicates(images: int | None) -> None:
    """All pairs of hashes by matrix products, against one hash after the other."""
    import numpy as np

    from leukofold.duplicates import HASH_DISTANCE, candidate_pairs

    count, rng = images or 100_000, np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    hashes[-100:] = hashes[:100]
    print(f"{count} hashes of 256 bits, 100 of them twice")
    timed("matrix products, all pairs", count, lambda: candidate_pairs(hashes, HASH_DISTANCE))
    some = min(count, 500)

    def one_by_one() -> None:
        for k in range(some):
            np.flatnonzero(np.bitwise_count(hashes[k] ^ hashes).sum(axis=1) <= HASH_DISTANCE)

    timed("one hash against all, popcount", some, one_by_one)


def blend(images: int | None) -> None:
    """Every method of combination on nine runs of 13 classes, from logits to the judgement by nested folds."""
    import numpy as np

    from leukofold.blending.aligning import AlignedRuns
    from leukofold.blending.judging import judge
    from leukofold.blending.methods import PLAIN, method_names
    from leukofold.competitions import get_competition

    count, rng = images or 38_535, np.random.default_rng(0)
    competition = get_competition("wbcbench")
    classes = len(competition.class_names)
    labels = rng.choice(classes, count, p=1.6 ** np.arange(classes) / (1.6 ** np.arange(classes)).sum())
    group = rng.integers(0, 345, count)
    signal = rng.gamma(2, 2, (count, 1)) * np.eye(classes)[labels] + rng.normal(size=(count, classes))
    oof = np.stack([signal + rng.normal(0, 0.5 + 0.1 * k, signal.shape) for k in range(9)]).astype(np.float32)
    names = tuple(f"run {k}" for k in range(9))
    for folds in (3, 5):
        runs = AlignedRuns(
            names,
            competition.class_names,
            competition.metric,
            oof,
            oof[None, :, :0],
            labels,
            group % folds,
            group,
            np.zeros(count, dtype=bool),
        )
        print(f"{count} images of 345 groups, {classes} classes, 9 runs, {folds} folds")
        for method in method_names():
            if method != PLAIN:
                timed(method, count, partial(judge, runs, [method]))


BENCHMARKS: dict[str, Callable[[int | None], None]] = {
    "blend": blend,
    "cache": cache,
    "denoise": denoise,
    "duplicates": duplicates,
}


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    if arguments.images is not None and arguments.images < 30:
        raise UserError(f"--images {arguments.images}: give at least 30")
    BENCHMARKS[arguments.what](arguments.images)


if __name__ == "__main__":
    main()
