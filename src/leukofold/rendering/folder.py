"""Draws a planned folder with several processes and puts it into place in one step."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from leukofold.errors import UserError
from leukofold.files import beside
from leukofold.processes import available_cores
from leukofold.rendering import cnmc, multimodal, raabin, wbcbench
from leukofold.rendering.external import AcevedoLayout, Blood8Layout, CellWikiLayout
from leukofold.rendering.plan import PLANT_STREAM, Layout, PlannedImage
from leukofold.rendering.spec import RenderSpec

LAYOUTS: dict[str, Layout] = {
    "wbcbench": wbcbench,
    "cnmc": cnmc,
    "raabin": raabin,
    "multimodal": multimodal,
    "acevedo": AcevedoLayout(),
    "blood8": Blood8Layout(),
    "cellwiki": CellWikiLayout(),
}

_CHUNK = 32  # images per task
_FEW = 256  # below this many images, starting processes costs more than it saves

TRUTH_COLUMNS = (
    "path", "image_id", "split", "patient", "true_label", "given_label", "severity", "planted", "duplicate_of",
)  # fmt: skip


def render_folder(
    competition: str, root: Path, spec: RenderSpec, stamp: dict[str, object], workers: int | None, progress: bool
) -> None:
    """Plans, draws and puts into place; see ``leukofold.rendering.render``, which checks the target first."""
    layout = LAYOUTS[competition]
    images = layout.plan_images(spec)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(root, "rendering")
    try:
        for folder in sorted({(temporary / image.path).parent for image in images}):
            folder.mkdir(parents=True)
        _draw_all(competition, temporary, images, spec.seed, workers, progress)
        _plant(layout, temporary, images, spec.seed)
        layout.write_lists(temporary, images)
        truth = pd.DataFrame([[getattr(image, column) for column in TRUTH_COLUMNS] for image in images])
        truth.to_csv(temporary / "rendered_truth.csv", header=list(TRUTH_COLUMNS), index=False, lineterminator="\n")
        (temporary / "rendered.json").write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        _move_into_place(temporary, root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _move_into_place(temporary: Path, root: Path) -> None:
    """Renames the finished folder to its place; an earlier one is set aside first and removed last."""
    aside = temporary.with_suffix(".replaced")
    if root.exists():
        root.rename(aside)
    try:
        temporary.rename(root)
    except OSError:
        if aside.exists():
            aside.rename(root)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _draw_all(
    competition: str, root: Path, images: list[PlannedImage], seed: int, workers: int | None, progress: bool
) -> None:
    """Draws every image that is not a copy."""
    jobs = [(index, image) for index, image in enumerate(images) if not image.duplicate_of]
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    if workers is None:
        workers = 1 if len(jobs) < _FEW else min(available_cores(), 16)
    with tqdm(total=len(jobs), desc=f"rendering {competition}", unit="image", disable=not progress) as bar:
        if workers <= 1:
            for chunk in chunks:
                bar.update(_draw_chunk(competition, root, chunk, seed))
            return
        # spawn: forking a process that has loaded torch or runs threads may deadlock
        context = multiprocessing.get_context("spawn")
        processes = min(workers, len(chunks))
        with ProcessPoolExecutor(processes, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            try:
                for count in _results(pool, competition, root, chunks, seed):
                    bar.update(count)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _results(
    pool: ProcessPoolExecutor, competition: str, root: Path, chunks: list[list[tuple[int, PlannedImage]]], seed: int
) -> Iterator[int]:
    """Yields the number of images of each chunk as it is done."""
    futures = [pool.submit(_draw_chunk, competition, root, chunk, seed) for chunk in chunks]
    for future in futures:
        yield future.result()


def _draw_chunk(competition: str, root: Path, jobs: list[tuple[int, PlannedImage]], seed: int) -> int:
    """Draws and writes some images; returns how many."""
    layout = LAYOUTS[competition]
    for index, image in jobs:
        (root / image.path).write_bytes(layout.draw(image, index, seed))
    return len(jobs)


def _plant(layout: Layout, root: Path, images: list[PlannedImage], seed: int) -> None:
    """Writes the copies and damages the files that the plan says."""
    corrupt = 0
    first: dict[tuple[str, str], int] = {}
    for index, image in enumerate(images):
        # the pictures of one cell stay registered: all are moved as the first of them
        number = first.setdefault((image.split, image.image_id), index)
        path = root / image.path
        if image.planted == "exact_duplicate":
            path.write_bytes((root / image.duplicate_of).read_bytes())
        elif image.planted == "near_duplicate":
            path.write_bytes(_near_copy(layout, (root / image.duplicate_of).read_bytes(), seed, number))
        elif image.planted == "corrupt":
            path.write_bytes(_damaged(path.read_bytes(), corrupt))
            corrupt += 1


def _near_copy(layout: Layout, content: bytes, seed: int, number: int) -> bytes:
    """Encodes an image again, moved by a pixel and slightly brighter or darker; pure black stays so."""
    rng = np.random.default_rng([seed, PLANT_STREAM, 3, number])
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise UserError("the image to copy cannot be decoded")
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    pixels = np.roll(pixels, rng.integers(-1, 2, 2), axis=(0, 1))
    gain = 1 + rng.choice([-1, 1]) * rng.uniform(0.01, 0.04)
    brighter = np.clip(pixels.astype(np.float32) * gain + 0.5, 0, 255).astype(np.uint8)
    return bytes(layout.encode(brighter))


def _damaged(content: bytes, number: int) -> bytes:
    """What is left of a file: in turn cut off half-way, nothing, or an error page."""
    kinds = (content[: len(content) // 2], b"", b"<html><body>404 Not Found</body></html>\n")
    return kinds[number % len(kinds)]
