"""Drawn cells: do measurements tell the classes apart as a haematologist would, and do degradations degrade?"""

from functools import lru_cache

import cv2
import numpy as np
import pytest

from leukofold.rendering import contact_sheet
from leukofold.rendering.cell import draw_image
from leukofold.rendering.degradation import MAX_SEVERITY, degrade
from leukofold.rendering.lymphoid import draw_segmented_cell, sample_subject
from leukofold.rendering.morphology import CLASS_NAMES, between_stages
from leukofold.rendering.stain import sample_appearance

PER_CLASS = 14


@lru_cache(maxsize=32)
def images_of(label: str) -> list[np.ndarray]:
    """Pristine images of one class, every one from another patient."""
    images = []
    for index in range(PER_CLASS):
        appearance = sample_appearance(np.random.default_rng([index, 1]))
        images.append(draw_image(label, appearance, np.random.default_rng([index, 2])))
    return images


def nucleus_mask(image: np.ndarray) -> np.ndarray:
    """Dark purple parts of the central 220 pixels: little green light comes through chromatin and its small gaps."""
    window = cv2.GaussianBlur(image[:, :, 1], (0, 0), 2.0)[74:294, 74:294]
    mask = (window < 88).astype(np.uint8)
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))


def cytoplasm_colour(image: np.ndarray) -> np.ndarray:
    """Median RGB of a ring around the nucleus, relative to the background."""
    nucleus = cv2.morphologyEx(nucleus_mask(image), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    ring = cv2.dilate(nucleus, np.ones((11, 11), np.uint8)) - cv2.dilate(nucleus, np.ones((5, 5), np.uint8))
    background = np.percentile(image.reshape(-1, 3), 90, axis=0)
    return np.asarray(np.median(image[74:294, 74:294][ring > 0], axis=0) / background)


def nucleus_area(label: str) -> np.ndarray:
    return np.array([nucleus_mask(image).sum() for image in images_of(label)])


def solidity(label: str) -> float:
    """Median of nucleus area over the area of its convex hull: 1 round, low when lobed."""
    values = []
    for image in images_of(label):
        contours, _ = cv2.findContours(nucleus_mask(image), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        large = [contour for contour in contours if cv2.contourArea(contour) > 150]
        hull = cv2.convexHull(np.concatenate(large))
        values.append(sum(cv2.contourArea(contour) for contour in large) / cv2.contourArea(hull))
    return float(np.median(values))


def cell_area(label: str) -> np.ndarray:
    """Area of the largest thing around the image's middle, red cells excluded by their colour and cut off."""
    areas = []
    for image in images_of(label):
        window = image[74:294, 74:294].astype(float) / np.percentile(image.reshape(-1, 3), 90, axis=0)
        mask = (window[:, :, 1] < 0.9) & (window[:, :, 2] - window[:, :, 0] > 0.02)
        closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
        opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25)))
        _, _, stats, _ = cv2.connectedComponentsWithStats(opened)
        areas.append(stats[1:, cv2.CC_STAT_AREA].max())
    return np.array(areas)


def test_eosinophils_are_redder_than_neutrophils_and_monocytes_bluer() -> None:
    redness = {
        label: np.mean([colour[0] - colour[1] for colour in map(cytoplasm_colour, images_of(label))])
        for label in ("EO", "SNE", "MO")
    }
    assert redness["EO"] > redness["SNE"] + 0.1
    blueness = {
        label: np.mean([colour[2] - colour[0] for colour in map(cytoplasm_colour, images_of(label))])
        for label in ("PC", "BL", "MO", "SNE")
    }
    assert blueness["PC"] > blueness["MO"] > blueness["SNE"]
    assert blueness["BL"] > blueness["SNE"] + 0.1


def test_lymphocytes_are_small_with_much_nucleus() -> None:
    ratio = {label: np.median(nucleus_area(label) / cell_area(label)) for label in ("LY", "MO", "SNE", "PC")}
    assert ratio["LY"] > 0.6
    assert max(ratio["MO"], ratio["SNE"], ratio["PC"]) < ratio["LY"] - 0.1
    assert np.median(cell_area("LY")) < 0.6 * np.median(cell_area("MO"))


def test_nuclei_lose_their_roundness_as_granulocytes_mature() -> None:
    myelocyte, metamyelocyte, band, segmented = (solidity(label) for label in ("MY", "MMY", "BNE", "SNE"))
    assert myelocyte > 0.9
    assert min(myelocyte, metamyelocyte) > band + 0.03
    assert band > segmented + 0.03
    assert segmented < 0.82, "lobes stand apart, though some overlap"
    areas = [np.median(nucleus_area(label)) for label in ("PMY", "MY", "MMY", "BNE")]
    assert areas == sorted(areas, reverse=True)


def test_maturation_is_a_continuum() -> None:
    lengths = [between_stages(maturity).length for maturity in np.linspace(0, 4, 41)]
    assert (np.diff(lengths) > 0).all()
    assert np.diff(lengths).max() < 0.4


def test_chromatin_condenses_as_granulocytes_mature() -> None:
    light = {}
    for label in ("PMY", "MY", "BNE", "SNE"):
        inside = [cv2.erode(nucleus_mask(image), np.ones((5, 5), np.uint8)) > 0 for image in images_of(label)]
        windows = [image[74:294, 74:294, 1] for image in images_of(label)]
        light[label] = np.median([np.median(window[mask]) for window, mask in zip(windows, inside, strict=True)])
    assert light["PMY"] > light["SNE"] + 6
    assert light["MY"] > light["SNE"]


def test_basophil_granules_cover_the_cell() -> None:
    dark = {
        label: np.median([(image[144:224, 144:224, 1] < 100).mean() for image in images_of(label)])
        for label in ("BA", "SNE", "EO")
    }
    assert dark["BA"] > dark["SNE"] + 0.1


def test_plasma_cell_nuclei_are_eccentric() -> None:
    def eccentricity(label: str) -> float:
        offsets = []
        for image in images_of(label):
            moments = cv2.moments(nucleus_mask(image))
            offsets.append(np.hypot(moments["m10"] / moments["m00"] - 110, moments["m01"] / moments["m00"] - 110))
        return float(np.median(offsets))

    assert eccentricity("PC") > 1.8 * eccentricity("LY")


def noise_level(image: np.ndarray) -> float:
    """Robust noise estimate in a flat part of the image (median absolute deviation of a high-pass)."""
    high = image[:, :, 1].astype(float) - cv2.GaussianBlur(image[:, :, 1], (0, 0), 1.5)
    return float(np.median(np.abs(high)))


def test_degradations_grow_with_severity() -> None:
    noise, sharpness, light = [], [], []
    for severity in range(MAX_SEVERITY + 1):
        degraded = [degrade(img, severity, np.random.default_rng(k)) for k, img in enumerate(images_of("SNE"))]
        noise.append(np.mean([noise_level(image) for image in degraded]))
        # averaging over 4x4 blocks removes the noise, so that only the blur is left to measure
        small = [cv2.resize(image, (92, 92), interpolation=cv2.INTER_AREA) for image in degraded]
        sharpness.append(np.mean([np.percentile(np.abs(cv2.Laplacian(image, cv2.CV_64F)), 99) for image in small]))
        pairs = zip(degraded, images_of("SNE"), strict=True)
        light.append(np.mean([abs(np.median(a / 255) - np.median(b / 255)) for a, b in pairs]))
    assert noise == sorted(noise)
    assert sharpness == sorted(sharpness, reverse=True)
    assert light == sorted(light)
    assert light[0] == 0


def test_degrade_keeps_severity_0_and_refuses_others() -> None:
    image = images_of("LY")[0]
    rng = np.random.default_rng(0)
    assert degrade(image, 0, rng) is image
    assert degrade(image, 2, rng).dtype == np.uint8
    large = np.full((700, 620, 3), 128, np.uint8)
    assert degrade(large, 4, rng).shape == large.shape
    with pytest.raises(ValueError, match="severity"):
        degrade(image, 5, rng)


def test_cnmc_subjects_differ_more_between_than_within() -> None:
    subjects, cells = 10, 8
    colours = np.empty((subjects, cells, 3))
    for subject in range(subjects):
        look = sample_subject(np.random.default_rng([subject, 7]))
        for cell in range(cells):
            image = draw_segmented_cell("all", look, np.random.default_rng([subject, cell]))
            colours[subject, cell] = image[image.max(axis=2) > 0].mean(axis=0)
    between = cells * colours.mean(axis=1).var(axis=0, ddof=1)
    within = colours.var(axis=1, ddof=1).mean(axis=0)
    assert (between / within > 4).all(), "one-way ANOVA F of the mean colour, per channel"


def test_cnmc_classes_differ_subtly() -> None:
    diameter = {"hem": [], "all": []}  # type: dict[str, list[float]]
    for label, values in diameter.items():
        for index in range(40):
            look = sample_subject(np.random.default_rng([index, label == "all"]))
            mask = draw_segmented_cell(label, look, np.random.default_rng([index, 3])).max(axis=2) > 0
            values.append(float(np.sqrt(4 * mask.sum() / np.pi)))
    difference = np.mean(diameter["all"]) - np.mean(diameter["hem"])
    spread = np.sqrt((np.var(diameter["all"]) + np.var(diameter["hem"])) / 2)
    assert 0.3 < difference / spread < 2.0, "blasts are larger, but sizes overlap"


def test_cnmc_cells_shine_at_their_edge() -> None:
    for label in ("hem", "all"):
        ratios = []
        for index in range(10):
            image = draw_segmented_cell(
                label, sample_subject(np.random.default_rng(index)), np.random.default_rng(index)
            )
            depth = cv2.distanceTransform((image.max(axis=2) > 0).astype(np.uint8), cv2.DIST_L2, 5)
            ratios.append(image[(depth > 2) & (depth < 5), 1].mean() / image[depth > 20, 1].mean())
        assert 1.2 < np.median(ratios) < 2.2


def test_contact_sheet_shows_every_class() -> None:
    sheet = contact_sheet.contact_sheet(columns=3)
    assert sheet.shape[2] == 3
    assert sheet.shape[0] > 15 * 100
    assert len(CLASS_NAMES) == 13
    assert contact_sheet.severity_strip(labels=("LY",)).shape[1] > 5 * 200
