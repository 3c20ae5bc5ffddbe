"""What lies around a leukocyte in a blood smear: red cells and platelets."""

from functools import lru_cache

import cv2
import numpy as np

from leukofold.rendering import shapes, texture
from leukofold.rendering.stain import Appearance
from leukofold.rendering.texture import FloatImage

_SPRITE = 112  # side of a sprite in pixels
_SPRITE_RADIUS = 36.0
_SPRITES = 24  # per kind


@lru_cache(maxsize=4)
def red_cell_sprites(crenated: bool) -> list[tuple[FloatImage, FloatImage]]:
    """Red cells drawn once: the stained disc, and how its middle is thinned by the central pallor.

    Args:
        crenated: with a scalloped edge (echinocytes) instead of a smooth one.

    Returns:
        Pairs (disc, pallor) of (112, 112) float32 in [0, 1].
    """
    rng = np.random.default_rng([20_260_227, int(crenated)])
    middle = (_SPRITE / 2, _SPRITE / 2)
    sprites = []
    for index in range(_SPRITES):
        elongation = 1 + abs(rng.normal(0, 0.12))
        outline = shapes.wavy_outline(rng, _SPRITE_RADIUS, elongation, 0.022, orders=5)
        if crenated:
            angle = np.arctan2(outline[:, 1], outline[:, 0])
            spikes = np.cos(rng.integers(9, 14) * angle + 0.8 * np.sin(2 * angle + rng.uniform(0, 6)))
            strength = 0.05 * (1 + 0.6 * np.sin(angle + rng.uniform(0, 6)))
            outline = outline * (1 + strength * spikes)[:, None]
        elif index % 12 == 0:  # a teardrop
            tail = np.exp(-((np.arctan2(outline[:, 1], outline[:, 0]) / 0.3) ** 2))
            outline = outline * (0.9 + rng.uniform(0.25, 0.45) * tail)[:, None]
        disc = shapes.fill_outline(outline, _SPRITE, middle)
        depth = cv2.distanceTransform((disc > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
        soft = cv2.GaussianBlur(disc, (0, 0), rng.uniform(0.8, 1.4))
        rim = 1 + 0.10 * np.exp(-(((depth - 4) / 4) ** 2))  # refraction darkens the edge a little
        size = rng.uniform(0.45, 0.66) * _SPRITE_RADIUS
        inner = shapes.wavy_outline(rng, size, elongation, 0.05, orders=4)
        hollow = cv2.GaussianBlur(shapes.fill_outline(inner, _SPRITE, middle), (0, 0), rng.uniform(3.5, 6.5))
        sprites.append(((soft * rim).astype(np.float32), np.asarray(hollow, dtype=np.float32)))
    return sprites


@lru_cache(maxsize=512)
def red_cell(crenated: bool, which: int, pallor: int) -> FloatImage:
    """One red cell sprite with its central pallor in tenths of full depth."""
    disc, hollow = red_cell_sprites(crenated)[which]
    return disc * (1 - np.float32(pallor / 10) * hollow)


def _place(canvas: FloatImage, sprite: FloatImage, x: float, y: float, angle: float, scale: float) -> None:
    """Lays a sprite on the canvas, turned by ``angle`` degrees and scaled, with its middle at (x, y)."""
    half = round(_SPRITE * scale / 2) + 1
    left, top = int(x) - half, int(y) - half
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + 2 * half, canvas.shape[1]), min(top + 2 * half, canvas.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    matrix = cv2.getRotationMatrix2D((_SPRITE / 2, _SPRITE / 2), angle, scale)
    matrix = matrix + np.array([[0, 0, x - x0 - _SPRITE / 2], [0, 0, y - y0 - _SPRITE / 2]])
    piece = cv2.warpAffine(sprite, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    window = canvas[y0:y1, x0:x1]
    # thinner where they lie on each other: an overlap is darker, but not twice as dark
    window[...] = np.maximum(window, piece) + 0.4 * np.minimum(window, piece)


def red_cells(
    shape: tuple[int, int],
    centre: tuple[float, float],
    keep_out: float,
    neighbours: list[tuple[float, float]],
    appearance: Appearance,
    rng: np.random.Generator,
) -> FloatImage:
    """Concentration of haemoglobin stain over an image.

    Args:
        shape: (height, width) in pixels.
        centre: x and y of the leukocyte.
        keep_out: radius in pixels around it that stays free.
        neighbours: middles of red cells that must be there (they press into the leukocyte).
        appearance: the patient's red cells.
        rng: source of places and shapes.

    Returns:
        (height, width) float32 concentration; darker where cells overlap.
    """
    canvas = np.zeros(shape, np.float32)
    radius = 35.0 * appearance.scale
    places = list(neighbours)
    wanted = int(rng.poisson(appearance.red_cells))
    candidates = rng.uniform(-radius, np.array(shape[::-1]) + radius, (4 * wanted, 2))
    closest = radius * rng.uniform(1.35, 2.1, len(candidates))  # a few overlap, most keep apart
    for (x, y), apart in zip(candidates.tolist(), closest.tolist(), strict=True):
        if len(places) >= wanted:
            break
        if places and rng.random() < appearance.stacking:
            px, py = places[int(rng.integers(len(places)))]
            away = radius * rng.uniform(1.0, 1.8) / max(np.hypot(x - px, y - py), 1.0)
            x, y, apart = px + (x - px) * away, py + (y - py) * away, 0.9 * radius
        if np.hypot(x - centre[0], y - centre[1]) < keep_out + 0.92 * radius:
            continue
        if all((x - px) ** 2 + (y - py) ** 2 > apart**2 for px, py in places):
            places.append((x, y))
    draws = rng.random((len(places), 5))
    for (x, y), (kind, which, turn, size, pale) in zip(places, draws.tolist(), strict=True):
        pallor = min(max(appearance.pallor + 0.5 * (pale - 0.5), 0.0), 0.9)
        sprite = red_cell(kind < appearance.crenation, int(which * _SPRITES), round(10 * pallor))
        scale = radius / _SPRITE_RADIUS * (0.88 + 0.24 * size)
        _place(canvas, sprite, x, y, 360 * turn, scale)
    return canvas


def platelets(canvas: FloatImage, centre: tuple[float, float], keep_out: float, rng: np.random.Generator) -> None:
    """Adds a few platelets, as concentration of azurophil stain, outside the leukocyte.

    Args:
        canvas: (H, W) float32 concentration to draw into.
        centre: x and y of the leukocyte.
        keep_out: radius in pixels around it that stays free.
        rng: source of number, places and shapes.
    """
    height, width = canvas.shape
    for _ in range(rng.poisson(1.2)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(4, 10)
        if np.hypot(x - centre[0], y - centre[1]) < keep_out + radius:
            continue
        half = int(1.6 * radius) + 2
        outline = shapes.wavy_outline(rng, radius, 1.2, 0.12, count=36)
        mask = cv2.GaussianBlur(shapes.fill_outline(outline, 2 * half, (half, half)), (0, 0), 0.8)
        grain = texture.crop(texture.noise_tile(1.5), mask.shape, rng)
        left, top = int(x) - half, int(y) - half
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * half, width), min(top + 2 * half, height)
        piece = np.multiply(mask, np.clip(0.62 + 0.25 * grain, 0.15, 1.6), dtype=np.float32)
        window = canvas[y0:y1, x0:x1]
        window[...] = np.maximum(window, piece[y0 - top : y1 - top, x0 - left : x1 - left])
