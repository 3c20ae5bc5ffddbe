"""Compares two ways of doing a thing in one run, on rendered images.

    python scripts/benchmark.py cache          # training images from the cache, and decoded from their files
    python scripts/benchmark.py denoise        # our non-local means, and scikit-image's
    python scripts/benchmark.py duplicates     # all pairs of 100,000 hashes, and the pixels of their candidates

Behaviours: creates nothing but temporary files; prints one line per measurement. Run it on a machine that
does nothing else.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from leukofold.cli import main_guard


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
    print(f"  {title:<44} {count / seconds:9.0f} images/s  {1000 * seconds / count:8.3f} ms per image  {seconds:7.1f} s")


def cache(images: int | None) -> None:
    """Training images through the image cache, against decoding, denoising and resizing each one every time."""
    import numpy as np

    from leukofold.augment import Augmentation
    from leukofold.competitions import get_competition
    from leukofold.config import DenoiseConfig, ImageConfig
    from leukofold.images.cache import open_cache
    from leukofold.images.preparing import Preparation
    from leukofold.images.reading import read_image
    from leukofold.loaders import CellDataset
    from leukofold.rendering import RenderSpec, render

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wbcbench"
        render("wbcbench", root, RenderSpec(images=images or 600, test_images=20, patients=30))
        frame = get_competition("wbcbench").read(root).labelled
        for title, denoise in (("plain", None), ("denoised", DenoiseConfig())):
            config = ImageConfig(size=224, denoise=denoise)
            preparation, augmentation = Preparation(config, lambda image: image), Augmentation(config.augment)

            def from_file(row: int, prepare: Preparation = preparation, augment: Augmentation = augmentation) -> object:
                return augment(prepare(read_image(frame.path[row])), row)

            print(f"{title}, {len(frame)} images of 368 pixels, to 224, augmented, one process")
            timed("building the cache, all cores, once", len(frame), lambda p=preparation: open_cache(frame, p, "b", Path(folder), False))  # type: ignore[misc]
            dataset = CellDataset(open_cache(frame, preparation, "b", Path(folder), False), frame, augmentation)
            rows = np.random.default_rng(0).permutation(len(frame))[:200].tolist()
            timed("from the cache, every epoch", len(rows), lambda d=dataset: [d[(row, row)] for row in rows])  # type: ignore[misc]
            timed("from the files, every epoch", len(rows), lambda f=from_file: [f(row) for row in rows])  # type: ignore[misc]


BENCHMARKS: dict[str, Callable[[int | None], None]] = {"cache": cache}


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    BENCHMARKS[arguments.what](arguments.images)


if __name__ == "__main__":
    main()
