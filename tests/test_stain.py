"""Stain normalisation and augmentation: smears of known stains, scikit-image's colour spaces, rendered cells."""

import random
from typing import Any, Literal

import albumentations as A
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.color import combine_stains, hed2rgb, hed_from_rgb, lab2rgb, rgb2hed, rgb2lab, rgb_from_hed

from leukofold.images.stain import (
    LAB_DEVIATION,
    LAB_MEAN,
    NUCLEAR,
    OTHER,
    STRENGTHS,
    StainNormalisation,
    find_background,
    find_stains,
    optical_density,
)
from leukofold.rendering.cell import draw_image
from leukofold.rendering.stain import sample_appearance
from leukofold.stain_augmentation import HEDJitter

Method = Literal["macenko", "reinhard", "light"]
METHODS: tuple[Method, ...] = ("macenko", "reinhard", "light")

PURPLE, BLUISH = (0.54, 1.0, 0.125), (0.66, 1.0, 0.56)  # nuclei and red cells; these absorb more red
CREAM, BLUE = (250.0, 228.0, 203.0), (190.0, 200.0, 230.0)
ANY_IMAGE = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


def amounts() -> np.ndarray:
    """Amounts of two stains in a field of 80 x 100 pixels: a nucleus, red cells, both on each other, and nothing."""
    rng = np.random.default_rng(0)
    field = np.zeros((80, 100, 2))
    field[5:40, 5:40, 0] = rng.uniform(0.6, 1.5, (35, 35))
    field[45:75, 10:90, 1] = rng.uniform(0.4, 0.7, (30, 80))
    field[30:40, 30:60] += rng.uniform(0.2, 0.4, (10, 30, 2))
    return field


def smear(first: Any = PURPLE, second: Any = BLUISH, light: Any = CREAM) -> np.ndarray:
    """The field under a microscope (Beer-Lambert)."""
    intensity = np.array(light) * np.exp(-amounts() @ np.array([first, second]))
    return np.asarray(np.rint(intensity), dtype=np.uint8)


def unit(vector: Any) -> np.ndarray:
    return np.asarray(np.array(vector) / np.linalg.norm(vector))


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(a.astype(float) - b).mean())


def test_the_background_is_that_of_the_light() -> None:
    image = smear(light=CREAM)
    assert find_background(image).tolist() == [250, 228, 203]
    image[:2] = 255  # glare
    assert find_background(image).tolist() == [250, 228, 203]


@pytest.mark.parametrize("light", [CREAM, BLUE])
def test_macenko_finds_the_two_stains_whatever_the_light(light: tuple[float, float, float]) -> None:
    image = smear(light=light)
    density = optical_density(image, find_background(image))
    assert density[0, 0] == pytest.approx(0, abs=0.01)
    assert density[8, 8] == pytest.approx(amounts()[8, 8, 0] * np.array(PURPLE), abs=0.02)
    nuclear, other = find_stains(density[density.max(axis=2) > 0.15]).T
    assert nuclear @ unit(PURPLE) > np.cos(np.radians(1.5))
    assert other @ unit(BLUISH) > np.cos(np.radians(1.5))


def test_macenko_paints_the_field_with_the_stains_of_the_reference() -> None:
    field = amounts()
    stained = field[(field > 0).any(axis=2)]
    scaled = field * STRENGTHS / np.percentile(stained, 99, axis=0)
    expected = 240 * np.exp(-scaled @ np.array([NUCLEAR, OTHER]))
    result = StainNormalisation("macenko")(smear())
    assert result[0, 0].tolist() == [240, 240, 240]
    assert difference(result, expected) < 2
    assert np.abs(result - expected).max() < 12


def test_macenko_makes_laboratories_alike() -> None:
    ours, theirs = smear(), smear((0.6, 0.9, 0.02), (0.35, 1.3, 0.75), BLUE)
    normalise = StainNormalisation("macenko")
    assert difference(ours, theirs) > 15
    assert difference(normalise(ours), normalise(theirs)) < 2


def test_light_brings_the_background_to_white_and_scales_the_rest_with_it() -> None:
    normalise = StainNormalisation("light")
    result = normalise(smear())
    assert result == pytest.approx(np.rint(smear() * (240 / np.array(CREAM))), abs=1)
    assert result[0, 0].tolist() == [240, 240, 240]
    assert difference(smear(), smear(light=BLUE)) > 15
    assert difference(result, normalise(smear(light=BLUE))) < 1


def test_reinhard_is_its_formula_in_the_colours_of_scikit_image() -> None:
    lab = rgb2lab(smear())
    expected = (lab - lab.mean((0, 1))) / lab.std((0, 1)) * LAB_DEVIATION + LAB_MEAN
    result = StainNormalisation("reinhard")(smear())
    assert np.abs(result - 255 * lab2rgb(expected)).max() < 2
    rendered = draw_image("SNE", sample_appearance(np.random.default_rng(1)), np.random.default_rng(2))
    normalised = rgb2lab(StainNormalisation("reinhard")(rendered))
    assert normalised.mean((0, 1)) == pytest.approx(LAB_MEAN, abs=1.5)  # what is brighter than white is cut off
    assert normalised.std((0, 1)) == pytest.approx(LAB_DEVIATION, abs=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_looks_more_alike_under_the_stains_of_two_patients(method: Method) -> None:
    normalise = StainNormalisation(method)
    before, after = [], []
    for patient in range(0, 8, 2):
        looks = [sample_appearance(np.random.default_rng([7, patient + k])) for k in range(2)]
        a, b = (draw_image("MO", look, np.random.default_rng(patient)) for look in looks)
        b = np.rint(b * np.array([0.75, 0.8, 0.9])).astype(np.uint8)  # under another lamp
        before.append(np.abs(a.mean((0, 1)) - b.mean((0, 1))).mean())
        after.append(np.abs(normalise(a).mean((0, 1)) - normalise(b).mean((0, 1))).mean())
    assert np.mean(after) < np.mean(before) / 3


def on_black() -> np.ndarray:
    """A cell cut out on black, as those of C-NMC."""
    image = np.zeros((90, 90, 3), np.uint8)
    image[20:70, 20:70] = np.random.default_rng(3).normal((90, 40, 100), 12, (50, 50, 3)).clip(1, 130)
    return image


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 40, 3), np.uint8),
        np.full((40, 40, 3), 255, np.uint8),
        np.full((40, 40, 3), (180, 120, 200), np.uint8),
        np.full((1, 1, 3), 200, np.uint8),
        np.random.default_rng(0).integers(225, 235, (40, 40, 3)).astype(np.uint8),
        on_black(),
    ],
    ids=["black", "white", "one colour", "one pixel", "blank", "cut out"],
)
def test_an_image_without_stains_comes_back_as_it_is(method: Method, image: np.ndarray) -> None:
    assert StainNormalisation(method)(image) is image


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_shades_of_grey_are_no_stains(method: Method) -> None:
    grey = np.repeat(np.linspace(60, 240, 1600).astype(np.uint8).reshape(40, 40, 1), 3, axis=2)
    assert StainNormalisation(method)(grey) is grey


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_not_written_into(method: Method) -> None:
    image = smear()
    image.flags.writeable = False
    first, second = (StainNormalisation(method)(image) for _ in range(2))
    assert not np.array_equal(first, image)
    assert np.array_equal(first, second)


@settings(max_examples=150, deadline=None)
@given(ANY_IMAGE, st.sampled_from(METHODS), st.integers(0, 200))
def test_any_image_gives_an_image(image: np.ndarray, method: Method, least: int) -> None:
    image = np.maximum(image, np.uint8(least))  # bright ones too, which are not just left alone
    with np.errstate(all="raise", under="ignore"):
        result = StainNormalisation(method)(image)
    assert result.dtype == np.uint8
    assert result.shape == image.shape


def jitter(image: np.ndarray, scale: Any, shift: Any) -> np.ndarray:
    return HEDJitter().apply(image, np.array(scale), np.array(shift))


@settings(max_examples=50, deadline=None)
@given(ANY_IMAGE)
def test_without_jitter_any_image_stays(image: np.ndarray) -> None:
    assert np.array_equal(jitter(image, [1, 1, 1], [0, 0, 0]), image)


def test_stains_are_scaled_and_shifted_as_scikit_image_does() -> None:
    rng = np.random.default_rng(5)
    image = np.rint(255 * hed2rgb(rng.uniform(0.02, 0.1, (30, 30, 3)))).astype(np.uint8)
    scale, shift = np.array([0.85, 1.1, 1.2]), np.array([0.05, -0.08, 0.02])
    unit_of_theirs = -np.log(1e-6)
    expected = 255 * hed2rgb(rgb2hed(image) * scale + shift / unit_of_theirs)
    assert np.abs(jitter(image, scale, shift) - expected).max() < 0.51


def test_negative_amounts_are_scaled_too() -> None:
    image = smear(light=BLUE)  # nuclei absorb next to no blue
    scale = np.array([1.1, 0.9, 1.3])
    amounts_of_theirs = np.log(image / 255) / np.log(1e-6) @ hed_from_rgb
    assert amounts_of_theirs.min() < -0.01
    expected = 255 * combine_stains(amounts_of_theirs * scale, rgb_from_hed)
    assert np.abs(jitter(image, scale, [0, 0, 0]) - expected).max() < 0.51


def test_black_stays_black() -> None:
    image = on_black()
    changed = jitter(image, [1.2, 0.8, 1.2], [-0.1, 0.1, -0.1])
    assert not changed[image.max(axis=2) == 0].any()
    assert not np.array_equal(changed, image)


def test_a_seed_decides_the_jitter() -> None:
    compose = A.Compose([HEDJitter(sigma=0.2, bias=0.1, p=1.0)])

    def augmented(seed: int) -> np.ndarray:
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        result: np.ndarray = compose(image=smear())["image"]
        return result

    assert np.array_equal(augmented(1), augmented(1))
    assert not np.array_equal(augmented(1), augmented(2))


def test_factors_and_shifts_are_uniform_in_their_ranges() -> None:
    transform = HEDJitter(sigma=0.2, bias=0.1)
    transform.set_random_state(np.random.default_rng(6), random.Random(6))
    drawn = [transform.get_params() for _ in range(2000)]
    for name, low, high in (("scale", 0.8, 1.2), ("shift", -0.1, 0.1)):
        values = np.array([draw[name] for draw in drawn])
        assert values.shape == (2000, 3)
        assert low <= values.min() < low + 0.001
        assert high - 0.001 < values.max() <= high
        assert values.mean(axis=0) == pytest.approx([(low + high) / 2] * 3, abs=0.01)
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("arguments", [{"sigma": 1.0}, {"sigma": -0.1}, {"bias": -0.1}])
def test_ranges_without_meaning_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        HEDJitter(**arguments)
