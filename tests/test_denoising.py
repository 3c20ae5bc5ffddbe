"""Noise estimate and non-local means against formulas written out, scikit-image, and cells of known noise."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.restoration import denoise_nl_means

from leukofold.images import denoising
from leukofold.images.denoising import (
    Denoising,
    denoise,
    denoise_batch,
    estimate_sigma,
    estimate_sigma_batch,
    nonlocal_means,
    search_distance,
)
from leukofold.rendering.cell import draw_image
from leukofold.rendering.stain import sample_appearance

DB2_HIGH_PASS = (-0.48296291314469025, 0.836516303737469, -0.22414386804185735, -0.12940952255092145)
ALWAYS = Denoising(threshold=0.0)
SHAPES = [(64, 64), (61, 70), (33, 48), (7, 5), (2, 3), (1, 1)]


@pytest.fixture(scope="module")
def cells() -> list[np.ndarray]:
    """The middles of five rendered cells, 180 x 200."""
    pictures = []
    for number, label in enumerate(["SNE", "LY", "EO", "BL", "BA"]):
        appearance = sample_appearance(np.random.default_rng([1, number]))
        pictures.append(draw_image(label, appearance, np.random.default_rng([2, number]))[90:270, 90:290])
    return pictures


def add_noise(image: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(-10 * np.log10(np.mean((image.astype(np.float64) - reference) ** 2) / 255**2))


def stack(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def unstack(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def wavelet_sigma(image: np.ndarray) -> float:
    """The estimate by a filter bank: mirror, convolve, take every second value; rows, then columns."""
    estimates = []
    for channel in np.moveaxis(image.astype(np.float64), 2, 0):
        details = channel
        for _ in range(2):
            rows = [np.convolve(np.pad(row, 3, "symmetric"), DB2_HIGH_PASS, "valid")[1::2] for row in details]
            details = np.array(rows).T
        magnitudes = np.abs(details[np.abs(details) > 1e-6])  # 1e-6: zero but for rounding
        estimates.append(np.median(magnitudes) / 0.6744897501960817 if magnitudes.size else 0.0)
    return float(np.mean(estimates))


def formula(image: np.ndarray, sigma: float, settings: Denoising, skipped: int = 0) -> np.ndarray:
    """Non-local means, offset by offset and patch pixel by patch pixel, in float64 and not rounded.

    The first so many rows and columns of a patch may be skipped, as if both patches were equal there and without noise.
    """
    height, width = image.shape[:2]
    distance, size = search_distance(sigma), settings.patch_size
    border = distance + size // 2
    padded = np.pad(image.astype(np.float64), ((border, border), (border, border), (0, 0)), "reflect")
    sums, total = np.zeros(image.shape), np.zeros((height, width, 1))
    for y in range(2 * distance + 1):
        for x in range(2 * distance + 1):
            d2 = np.zeros((height, width))
            for v in range(skipped, size):
                for u in range(skipped, size):
                    here = padded[distance + v :, distance + u :][:height, :width]
                    difference = here - padded[y + v :, x + u :][:height, :width]
                    d2 += ((difference**2).mean(axis=2) - 2 * sigma**2) / size**2
            weight = np.exp(-np.maximum(d2, 0) / (settings.strength * sigma) ** 2)[:, :, None]
            sums += weight * padded[y + size // 2 :, x + size // 2 :][:height, :width]
            total += weight
    return np.asarray(sums / total)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.6, 3.0, 25.0])
def test_sigma_is_that_of_a_wavelet_filter_bank(shape: tuple[int, int], sigma: float) -> None:
    image = add_noise(np.full((*shape, 3), 120), sigma)
    assert estimate_sigma(image) == pytest.approx(wavelet_sigma(image), rel=1e-5, abs=1e-6)


def test_sigma_of_a_cell_is_that_of_a_wavelet_filter_bank(cells: list[np.ndarray]) -> None:
    for cell in cells:
        assert estimate_sigma(cell) == pytest.approx(wavelet_sigma(cell), rel=1e-5)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 10.0, 20.0])
def test_sigma_is_that_of_the_noise_added_to_a_cell(cells: list[np.ndarray], sigma: float) -> None:
    dark = [cell // 2 + 50 for cell in cells]  # far from 0 and 255, where noise would be cut off
    estimates = [estimate_sigma(add_noise(cell, sigma)) for cell in dark]
    assert estimates == pytest.approx([sigma] * len(cells), rel=0.05, abs=0.2)


@pytest.mark.parametrize("grey", [0, 77, 255])
def test_a_painted_background_does_not_hide_the_noise(grey: int) -> None:
    image = np.full((300, 300, 3), grey, np.uint8)
    image[50:150, 50:150] = add_noise(np.full((100, 100, 3), 128), 9.0)
    assert estimate_sigma(image) == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_image_has_no_noise_and_stays(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (200, 90, 255), np.uint8)
    assert estimate_sigma(image) == 0
    assert denoise(image, ALWAYS) is image
    batch = stack([image, image])
    assert estimate_sigma_batch(batch).tolist() == [0, 0]
    assert torch.equal(denoise_batch(batch, ALWAYS), batch)
    assert np.array_equal(nonlocal_means(image, 5.0, ALWAYS), image)


def test_the_batch_estimates_the_same_sigmas(cells: list[np.ndarray]) -> None:
    images = [add_noise(cell, sigma) for cell, sigma in zip(cells, [0, 1, 4, 12, 40], strict=True)]
    images[4][:90] = 255
    expected = [estimate_sigma(image) for image in images]
    assert estimate_sigma_batch(stack(images)).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("sigma", "distance"), [(0.3, 1), (1.5, 1), (2.4, 2), (6.0, 2), (6.5, 3), (25.0, 5), (90, 9)])
def test_the_search_distance_is_the_rounded_root_of_sigma(sigma: float, distance: int) -> None:
    assert search_distance(sigma) == distance


@pytest.mark.parametrize("patch_size", [1, 3, 7])
@pytest.mark.parametrize(("sigma", "strength"), [(2.0, 0.8), (12.0, 1.6)])
def test_nonlocal_means_is_its_formula(cells: list[np.ndarray], sigma: float, strength: float, patch_size: int) -> None:
    image = add_noise(cells[0][40:101, 50:120], sigma)
    chosen = Denoising(strength=strength, patch_size=patch_size)
    difference = np.abs(nonlocal_means(image, sigma, chosen) - formula(image, sigma, chosen))
    assert difference.max() < 0.501  # rounded to the nearest grey level


@pytest.mark.parametrize(("sigma", "nearness"), [(3.0, 50), (6.0, 44), (10.0, 41), (16.0, 39), (25.0, 38)])
def test_nonlocal_means_is_that_of_scikit_image_but_for_its_smaller_patch(
    cells: list[np.ndarray], sigma: float, nearness: float
) -> None:
    # scikit-image's fast mode leaves a row and a column out of each patch, and divides by the whole patch's area
    chosen = Denoising(strength=0.8, patch_size=5)
    image = add_noise(cells[0], sigma)
    theirs = denoise_nl_means(
        image.astype(np.float32),
        patch_size=5,
        patch_distance=search_distance(sigma),
        h=0.8 * sigma,
        sigma=sigma,
        preserve_range=True,
        channel_axis=-1,
    )
    ours = nonlocal_means(image, sigma, chosen)
    assert psnr(formula(image, sigma, chosen, skipped=1), theirs) >= 65
    assert psnr(ours, theirs) >= nearness
    assert psnr(ours, cells[0]) >= psnr(theirs, cells[0]) - 1.0


def test_torch_and_opencv_agree(cells: list[np.ndarray]) -> None:
    images = [add_noise(cell, sigma) for cell in cells[:2] for sigma in (0, 2, 5, 11, 30)]
    one_by_one = np.stack([denoise(image, Denoising()) for image in images])
    batch = unstack(denoise_batch(stack(images), Denoising()))
    difference = np.abs(batch.astype(int) - one_by_one)
    assert difference.max() <= 1
    assert difference.mean() < 2e-4
    for index in (0, 5):  # too clean to be touched
        assert np.array_equal(batch[index], images[index])


def test_memory_bounds_do_not_change_a_batch(cells: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    images = stack([add_noise(cell, 8.0) for cell in cells])
    whole = denoise_batch(images, Denoising())
    monkeypatch.setattr(denoising, "_PIXELS_AT_ONCE", 2 * 180 * 200)
    assert torch.equal(denoise_batch(images, Denoising()), whole)


def test_the_batch_is_not_written_into(cells: list[np.ndarray]) -> None:
    images = stack([add_noise(cell, 8.0) for cell in cells])
    before = images.clone()
    assert not torch.equal(denoise_batch(images, Denoising()), images)
    assert torch.equal(images, before)


def test_images_below_the_threshold_are_returned_themselves(cells: list[np.ndarray]) -> None:
    image = add_noise(cells[1], 6.0)
    before, sigma = image.copy(), estimate_sigma(image)
    assert denoise(image, Denoising(threshold=sigma * 1.001)) is image
    assert denoise(image, Denoising(threshold=sigma)) is not image
    assert np.array_equal(image, before)


def test_clean_cells_are_not_touched(cells: list[np.ndarray]) -> None:
    for cell in cells:
        encoded = cv2.imencode(".jpg", cell, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        reread = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
        assert denoise(cell, Denoising()) is cell
        assert denoise(reread, Denoising()) is reread


@pytest.mark.parametrize(
    ("sigma", "mean_gain", "least_gain"), [(3, 3.2, 2.2), (6, 5.3, 3.8), (12, 6.6, 4.5), (20, 7.4, 6.0)]
)
def test_denoising_brings_noisy_cells_nearer_to_the_clean_ones(
    cells: list[np.ndarray], sigma: float, mean_gain: float, least_gain: float
) -> None:
    noisy = [add_noise(cell, sigma, seed) for seed, cell in enumerate(cells)]
    gains = [psnr(denoise(n, Denoising()), cell) - psnr(n, cell) for n, cell in zip(noisy, cells, strict=True)]
    assert np.mean(gains) >= mean_gain
    assert min(gains) >= least_gain


def test_the_bits_do_not_depend_on_threads(cells: list[np.ndarray]) -> None:
    images = [cv2.resize(add_noise(cell, 10.0), (500, 480)) for cell in cells[:3]]
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        alone = [nonlocal_means(image, 8.0, Denoising()) for image in images]
        cv2.setNumThreads(4)
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda image: nonlocal_means(image, 8.0, Denoising()), images))
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(0.5, 60), st.sampled_from([1, 3, 5, 9]))
def test_any_image_however_small(height: int, width: int, seed: int, sigma: float, patch_size: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.choice(256, 2, replace=False).tolist())
    image = rng.integers(low, high + 1, (height, width, 3)).astype(np.uint8)
    chosen = Denoising(threshold=0.0, patch_size=patch_size)
    clean = nonlocal_means(image, sigma, chosen).astype(int)
    assert (clean >= image.min(axis=(0, 1))).all()  # each channel keeps within its range
    assert (clean <= image.max(axis=(0, 1))).all()
    for turned, turned_back in (
        (image[::-1], np.s_[::-1]),
        (image[:, ::-1], np.s_[:, ::-1]),
    ):
        flipped = nonlocal_means(np.ascontiguousarray(turned), sigma, chosen).astype(int)
        assert np.abs(flipped[turned_back] - clean).max() <= 1
    transposed = nonlocal_means(np.ascontiguousarray(image.swapaxes(0, 1)), sigma, chosen).astype(int)
    assert np.abs(transposed.swapaxes(0, 1) - clean).max() <= 1
    batch = unstack(denoise_batch(stack([image]), chosen))[0].astype(int)
    assert np.abs(batch - denoise(image, chosen)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 4}, "patch_size must be an odd number of pixels, not 4"),
        ({"patch_size": -1}, "patch_size must be an odd number of pixels, not -1"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"threshold": -1.0}, "threshold at least 0"),
    ],
)
def test_settings_without_meaning_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoising(**changes)  # type: ignore[arg-type]
