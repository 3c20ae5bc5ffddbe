"""Adaptive denoising: the noise of each image is estimated, and noisy images alone pass non-local means.

Two implementations of the same formulas: OpenCV for single images, torch for batches on any device.

Sources: Donoho and Johnstone 1994 (noise from wavelet details); Buades, Coll and Morel 2005 and 2011 (non-local means,
and its correction for the known variance). Srivastava et al. 2026, section 2.1, joins them and lets the search distance
be the square root of the noise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
import torch
import torch.nn.functional as F

_ROOT3 = math.sqrt(3)
_HIGH_PASS = tuple(c / (4 * math.sqrt(2)) for c in (_ROOT3 - 1, 3 - _ROOT3, -3 - _ROOT3, 1 + _ROOT3))
"""High-pass filter of Daubechies' wavelet of two vanishing moments (db2), as it is laid over the pixels."""

_MAD_OF_NORMAL = 0.6744897501960817
"""Median of |x| for x of the standard normal distribution: its 75 % quantile."""

_FLAT = 1e-3
"""Details below this, in grey levels, are zero but for rounding: areas without noise, such as a painted background."""

_SPAN = 20.0
"""The smallest weight is exp(-20) of the largest: of no effect, but no denormal number, which CPUs are slow at."""

_PIXELS_AT_ONCE = 2**23
"""Most pixels that a batch is worked on at once."""


@dataclass(frozen=True)
class Denoising:
    """Settings of the denoising.

    Of a sample of 890 clean real images the defaults touch none. On noisy ones a small patch loses the least of
    granules and chromatin, and a strength above 1 makes up for noise that is underestimated after JPEG compression.

    Attributes:
        threshold: Images of a smaller estimated noise stay as they are; standard deviation in grey levels, >= 0.
        strength: How unlike a patch may be and still count: h / sigma of non-local means, > 0.
        patch_size: Side of the compared patches in pixels, odd.
    """

    threshold: float = 1.5
    strength: float = 1.6
    patch_size: int = 3

    def __post_init__(self) -> None:
        """Refuses settings that non-local means has no meaning for."""
        if self.patch_size < 1 or self.patch_size % 2 == 0:
            raise ValueError(f"patch_size must be an odd number of pixels, not {self.patch_size}")
        if not (self.strength > 0 and self.threshold >= 0):
            raise ValueError(
                f"strength must be above 0 and threshold at least 0, not {self.strength}, {self.threshold}"
            )


def search_distance(sigma: float) -> int:
    """Returns how far similar patches are looked for: round(sqrt(sigma)), at least 1 (Srivastava et al. 2026)."""
    return max(1, round(math.sqrt(sigma)))


def estimate_sigma(image: np.ndarray) -> float:
    """Estimates the standard deviation of an image's noise.

    The median magnitude of the finest diagonal db2 wavelet details, divided by that of the standard normal
    distribution (Donoho and Johnstone 1994, section 4.2), for each channel, averaged. The same definition as
    scikit-image's ``estimate_sigma``, but details that are zero are left out even where rounding hides it.

    Args:
        image: H x W x 3 uint8.

    Returns:
        Grey levels; 0 where there is no noise at all.
    """
    padded = cv2.copyMakeBorder(image, 2, 3, 2, 3, cv2.BORDER_REFLECT)
    kernel = np.outer(_HIGH_PASS, _HIGH_PASS).astype(np.float32)
    filtered = cv2.filter2D(padded, cv2.CV_32F, kernel, anchor=(0, 0))
    details = np.abs(filtered[: image.shape[0] + 2 : 2, : image.shape[1] + 2 : 2])
    noisy = [channel[channel > _FLAT] for channel in cv2.split(details)]
    return float(np.mean([np.median(channel) if channel.size else 0.0 for channel in noisy])) / _MAD_OF_NORMAL


def estimate_sigma_batch(images: torch.Tensor) -> torch.Tensor:
    """Estimates the noise of each image of a batch as ``estimate_sigma`` does.

    Args:
        images: n x 3 x H x W uint8, on any device.

    Returns:
        n float32, grey levels, on the same device.
    """
    return torch.cat([_sigmas(part) for part in torch.split(images, _images_at_once(images))])


def _sigmas(images: torch.Tensor) -> torch.Tensor:
    """Estimates the noise of as many images as memory holds at once."""
    height, width = ((side + 3) // 2 for side in images.shape[2:])
    details = _mirror(images, 2, 3, repeat_edge=True).float()
    # sums of slices, not a convolution, which a GPU may round to 10 bits
    details = reduce(torch.add, (c * details[:, :, i : i + 2 * height : 2] for i, c in enumerate(_HIGH_PASS)))
    details = reduce(torch.add, (c * details[..., i : i + 2 * width : 2] for i, c in enumerate(_HIGH_PASS)))
    ordered = details.abs().flatten(2).sort(dim=2).values
    flat = (ordered <= _FLAT).sum(dim=2, keepdim=True)
    noisy = ordered.shape[2] - flat
    middle = torch.cat([flat + (noisy - 1) // 2, flat + noisy // 2], dim=2).clamp_max(ordered.shape[2] - 1)
    medians = torch.where(noisy > 0, ordered.gather(2, middle), 0.0).mean(dim=2)
    return medians.mean(dim=1) / _MAD_OF_NORMAL


def denoise(image: np.ndarray, settings: Denoising) -> np.ndarray:
    """Removes the noise of one image, if it has enough of it.

    One call keeps about one core busy. Many images are best spread over threads, or over processes: the calls within
    are short, so that threads wait for Python's lock and two of them are 1.5 times as fast as one.

    Args:
        image: H x W x 3 uint8.
        settings: Threshold, strength and patch size.

    Returns:
        H x W x 3 uint8, the same bits on any number of threads; the same object where the estimated noise is below
        the threshold.
    """
    sigma = estimate_sigma(image)
    return nonlocal_means(image, sigma, settings) if _is_noisy(sigma, settings) else image


def denoise_batch(images: torch.Tensor, settings: Denoising) -> torch.Tensor:
    """Removes the noise of those images of a batch that have enough of it, as ``denoise`` does.

    Args:
        images: n x 3 x H x W uint8, on any device.
        settings: Threshold, strength and patch size.

    Returns:
        n x 3 x H x W uint8 on the same device; one value in 30,000 or so differs by one from ``denoise``.
    """
    result = images.clone(memory_format=torch.contiguous_format)
    by_distance: dict[int, list[int]] = {}
    sigmas = estimate_sigma_batch(images)
    for index, sigma in enumerate(sigmas.tolist()):
        if _is_noisy(sigma, settings):
            by_distance.setdefault(search_distance(sigma), []).append(index)
    for distance, indices in by_distance.items():
        for part in torch.split(torch.tensor(indices, device=images.device), _images_at_once(images)):
            result[part] = _nonlocal_means_batch(result[part], sigmas[part], distance, settings)
    return result


def _is_noisy(sigma: float, settings: Denoising) -> bool:
    """Tells whether an image of this noise is denoised."""
    return sigma >= settings.threshold and sigma > 0


def nonlocal_means(image: np.ndarray, sigma: float, settings: Denoising) -> np.ndarray:
    """Replaces each pixel by the mean of the pixels around it, weighted by how alike their patches are.

    A patch at mean squared difference d2 (over pixels and channels) weighs exp(-max(d2 - 2 sigma^2, 0) / h^2) with
    h = strength sigma (Buades, Coll and Morel 2011). One weight serves the three channels. Beyond its edges
    the image is mirrored.

    Args:
        image: H x W x 3 uint8.
        sigma: Standard deviation of the noise in grey levels, > 0.
        settings: Strength and patch size.

    Returns:
        H x W x 3 uint8.
    """
    height, width = image.shape[:2]
    distance = search_distance(sigma)
    border = distance + settings.patch_size // 2
    planes = cv2.split(cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REFLECT_101))
    weigher = _Weigher(planes, sigma, settings)
    values = [plane.astype(np.float32) for plane in planes]
    own_weight = np.float32(math.exp(_SPAN))
    sums = [plane[border : border + height, border : border + width] * own_weight for plane in values]
    total = np.full((height, width), own_weight)
    for dy, dx in _half_offsets(distance):
        weights = weigher.weights(distance, dy, dx)
        ways = [
            (
                weights[from_y : from_y + height, from_x : from_x + width],
                np.s_[border + to_y : border + to_y + height, border + to_x : border + to_x + width],
            )
            for from_y, from_x, to_y, to_x in _both_ways(dy, dx)
        ]
        for weight, _ in ways:
            cv2.accumulate(weight, total)
        for plane, plane_sum in zip(values, sums, strict=True):  # plane by plane: both times it is in the cache
            for weight, there in ways:
                cv2.accumulateProduct(weight, plane[there], plane_sum)
    return cv2.convertScaleAbs(cv2.merge([cv2.divide(plane_sum, total) for plane_sum in sums]))


class _Weigher:
    """Weighs the patches of one image at one offset after the other, always in the same memory.

    Args:
        planes: The three channels, uint8, with a mirrored border.
        sigma: Standard deviation of the noise.
        settings: Strength and patch size.
    """

    def __init__(self, planes: Sequence[np.ndarray], sigma: float, settings: Denoising) -> None:
        self.planes = planes
        self.size = settings.patch_size
        self.difference = np.empty_like(planes[0])
        self.squares, self.exponent = np.empty((2, *planes[0].shape), np.float32)
        # the filter adds up the patch and scales it; delta adds what the noise alone makes of it
        self.across = np.ones(self.size, np.float32)
        self.down = np.full(self.size, -1 / (3 * (self.size * settings.strength * sigma) ** 2), np.float32)
        self.delta = _SPAN + 2 / settings.strength**2

    def weights(self, distance: int, dy: int, dx: int) -> np.ndarray:
        """Weighs for each p the pixel at p + (dy, dx); all weights are exp(20) times those of the formula.

        Returns:
            (H + dy) x (W + abs(dx)) float32, from the pixel at (-dy, -max(dx, 0)) on: see ``_both_ways``.
        """
        radius = self.size // 2
        top, left = distance - dy, distance - max(dx, 0)
        rows, columns = self.squares.shape[0] - 2 * distance + dy, self.squares.shape[1] - 2 * distance + abs(dx)
        difference, squares, exponent = (
            buffer[:rows, :columns] for buffer in (self.difference, self.squares, self.exponent)
        )
        squares.fill(0)
        for plane in self.planes:
            here = plane[top : top + rows, left : left + columns]
            there = plane[top + dy : top + dy + rows, left + dx : left + dx + columns]
            cv2.absdiff(here, there, dst=difference)
            cv2.accumulateSquare(difference, squares)
        cv2.sepFilter2D(squares, cv2.CV_32F, self.across, self.down, dst=exponent, delta=self.delta)
        cv2.threshold(exponent, _SPAN, 0, cv2.THRESH_TRUNC, dst=exponent)
        cv2.threshold(exponent, 0, 0, cv2.THRESH_TOZERO, dst=exponent)
        cv2.exp(exponent, dst=exponent)
        return exponent[radius : rows - radius, radius : columns - radius]


def _nonlocal_means_batch(
    images: torch.Tensor, sigmas: torch.Tensor, distance: int, settings: Denoising
) -> torch.Tensor:
    """Does for n x 3 x H x W uint8 images of one search distance what ``nonlocal_means`` does for one."""
    height, width = images.shape[2:]
    size, radius = settings.patch_size, settings.patch_size // 2
    border = distance + radius
    padded = _mirror(images, border, border, repeat_edge=False).float()
    variance = sigmas.square()[:, None, None, None]
    sums, total = images.float(), torch.ones_like(images[:, :1], dtype=torch.float32)
    for dy, dx in _half_offsets(distance):
        top, left = distance - dy, distance - max(dx, 0)
        rows, columns = height + dy + 2 * radius, width + abs(dx) + 2 * radius
        here = padded[:, :, top : top + rows, left : left + columns]
        there = padded[:, :, top + dy : top + dy + rows, left + dx : left + dx + columns]
        squares = (here - there).square_().sum(dim=1, keepdim=True)
        unlike = F.avg_pool2d(squares, size, stride=1, divisor_override=3 * size**2)
        weights = ((2 * variance - unlike) / (settings.strength**2 * variance)).clamp_(-_SPAN, 0).exp_()
        for from_y, from_x, to_y, to_x in _both_ways(dy, dx):
            weight = weights[:, :, from_y : from_y + height, from_x : from_x + width]
            y, x = border + to_y, border + to_x
            total += weight
            sums.addcmul_(weight, padded[:, :, y : y + height, x : x + width])
    return sums.div_(total).round_().to(torch.uint8)


def _half_offsets(distance: int) -> Iterator[tuple[int, int]]:
    """Yields one of each two opposite offsets (dy, dx) up to a distance in both directions, without (0, 0).

    Opposite offsets share their weights: p is to p + (dy, dx) what p + (dy, dx) is to p.
    """
    for dy in range(distance + 1):
        for dx in range(-distance if dy else 1, distance + 1):
            yield dy, dx


def _both_ways(dy: int, dx: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Tells where the image's weights begin among those of an offset, and which pixels they weigh.

    Returns:
        For the offset and for its opposite: first row and column of the weights, step in rows and columns.
    """
    return (dy, max(dx, 0), dy, dx), (0, max(-dx, 0), -dy, -dx)


def _mirror(images: torch.Tensor, before: int, after: int, repeat_edge: bool) -> torch.Tensor:
    """Mirrors n x 3 x H x W images beyond their edges, however small they are.

    Args:
        images: The images.
        before: Rows and columns added above and to the left.
        after: Rows and columns added below and to the right.
        repeat_edge: Whether the mirror lies on the edge of the outermost pixels; else in their middle.
    """
    for axis in (2, 3):
        period = max(2 * images.shape[axis] - (0 if repeat_edge else 2), 1)
        phase = torch.arange(-before, images.shape[axis] + after, device=images.device) % period
        images = images.index_select(axis, torch.minimum(phase, period - int(repeat_edge) - phase))
    return images


def _images_at_once(images: torch.Tensor) -> int:
    """Returns how many of these images are worked on at once, so that memory stays bounded."""
    return max(1, _PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
