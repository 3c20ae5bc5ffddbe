"""Handcrafted features: where the cell is, what is measured of it, and the machine that learns from that."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import skew
from skimage.color import rgb2lab
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.morphology import convex_hull_image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from leukofold.errors import UserError
from leukofold.handcrafted.masks import cell_masks
from leukofold.handcrafted.measures import NAMES, measure
from leukofold.handcrafted.svm import SupportVectorMachine, inner_splits
from leukofold.rendering.cell import draw_image
from leukofold.rendering.lymphoid import draw_segmented_cell, sample_subject
from leukofold.rendering.stain import sample_appearance

BLACK, BACKGROUND, RED_CELL = (0, 0, 0), (245, 230, 215), (220, 175, 165)
CYTOPLASM, NUCLEUS = (165, 155, 205), (90, 35, 140)
ANGLES = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
LEAST = float(np.log(np.float32(1e-6)))

Ellipse = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int]]


def draw(background: tuple[int, int, int], *ellipses: Ellipse) -> np.ndarray:
    """Draws ellipses of a middle, two half axes and a colour over each other, on 300 x 300 pixels."""
    image = np.full((300, 300, 3), background, np.uint8)
    for middle, axes, colour in ellipses:
        cv2.ellipse(image, middle, axes, 0, 0, 360, colour, cv2.FILLED)
    return image


def measured(image: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, measure(image).tolist(), strict=True))


@lru_cache(maxsize=1)
def segmented_cells() -> list[np.ndarray]:
    """Rendered cells on black, of eight subjects."""
    return [
        draw_segmented_cell(
            "all" if k % 2 else "hem", sample_subject(np.random.default_rng([k, 1])), np.random.default_rng([k, 2])
        )[75:375, 75:375]
        for k in range(8)
    ]


def smear(label: str, patient: int) -> np.ndarray:
    appearance = sample_appearance(np.random.default_rng([patient, 1]))
    return draw_image(label, appearance, np.random.default_rng([patient, 2]))


@pytest.mark.parametrize("background", [BLACK, BACKGROUND])
def test_area_axes_and_centres_of_a_drawn_cell_are_those_of_its_ellipses(background: tuple[int, int, int]) -> None:
    found = measured(draw(background, ((150, 150), (70, 50), CYTOPLASM), ((165, 150), (40, 30), NUCLEUS)))
    assert found["cell_area"] == pytest.approx(np.pi * 70 * 50, rel=0.04)
    assert found["nucleus_area"] == pytest.approx(np.pi * 40 * 30, rel=0.06)
    assert found["nucleus_share"] == pytest.approx(40 * 30 / (70 * 50), rel=0.05)
    assert found["nucleus_offset"] == pytest.approx(15, abs=0.5)
    for part, a, b in (("cell", 70, 50), ("nucleus", 40, 30)):
        assert found[f"{part}_eccentricity"] == pytest.approx(np.sqrt(1 - b**2 / a**2), abs=0.02)
        assert found[f"{part}_major_axis"] == pytest.approx(2 * a, rel=0.03)
        assert found[f"{part}_minor_axis"] == pytest.approx(2 * b, rel=0.04)
        assert found[f"{part}_extent"] == pytest.approx(np.pi / 4, rel=0.03)
        assert found[f"{part}_solidity"] > 0.97
        circumference = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))  # Ramanujan
        assert found[f"{part}_perimeter"] == pytest.approx(circumference, rel=0.03)
        assert found[f"{part}_form_factor"] == pytest.approx(4 * np.pi**2 * a * b / circumference**2, rel=0.04)


def test_red_cells_that_touch_a_cell_are_cut_off_and_its_lobes_belong_together() -> None:
    lobes: tuple[Ellipse, ...] = (((125, 150), (18, 28), NUCLEUS), ((172, 150), (18, 28), NUCLEUS))
    cell: Ellipse = ((150, 150), (60, 60), CYTOPLASM)
    alone = measured(draw(BACKGROUND, cell, *lobes))
    red_cells: tuple[Ellipse, ...] = (((243, 150), (36, 36), RED_CELL), ((150, 53), (40, 40), RED_CELL))
    far: Ellipse = ((40, 260), (15, 15), NUCLEUS)  # a platelet, or another cell's nucleus
    touched = measured(draw(BACKGROUND, *red_cells, far, cell, *lobes))
    assert touched["cell_area"] == pytest.approx(alone["cell_area"], rel=0.05)
    assert touched["nucleus_area"] == pytest.approx(alone["nucleus_area"], rel=0.01)
    assert alone["nucleus_area"] == pytest.approx(2 * np.pi * 18 * 28, rel=0.1)
    assert alone["nucleus_solidity"] < 0.85


def test_the_cell_on_black_is_the_largest_piece_that_is_not_black_with_its_holes_filled() -> None:
    for image in segmented_cells():
        speckled = image.copy()
        speckled[4:8, 4:8] = 200  # a speck apart
        speckled[148:152, 148:152] = 0  # a hole
        labels, _ = ndimage.label(speckled.any(axis=2), structure=np.ones((3, 3)))
        largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        masks = cell_masks(speckled)
        assert np.array_equal(masks.cell, ndimage.binary_fill_holes(largest))
        assert masks.nucleus.any()
        assert not (masks.nucleus & ~masks.cell).any()


@pytest.mark.parametrize("label", ["SNE", "LY", "MO", "EO", "BL"])
def test_nuclei_of_rendered_smears_are_dark_inside_the_cell_and_in_the_middle(label: str) -> None:
    for patient in range(3):
        image = smear(label, patient)
        masks = cell_masks(image)
        assert not (masks.nucleus & ~masks.cell).any()
        green = image[:, :, 1].astype(float)
        assert green[masks.nucleus].mean() < 0.6 * green[~masks.cell].mean()
        assert np.abs(np.argwhere(masks.nucleus).mean(axis=0) - 184).max() < 40
        assert 2000 < masks.nucleus.sum() <= masks.cell.sum() < 40000


def test_measures_tell_classes_apart_as_a_haematologist_would() -> None:
    found = {label: [measured(smear(label, patient)) for patient in range(4)] for label in ("SNE", "LY", "MO")}
    median = {
        label: {name: float(np.median([each[name] for each in cells])) for name in NAMES}
        for label, cells in found.items()
    }
    assert median["SNE"]["nucleus_solidity"] < median["LY"]["nucleus_solidity"] - 0.05  # lobed
    assert median["SNE"]["nucleus_share"] < median["LY"]["nucleus_share"] - 0.1  # much cytoplasm
    assert median["MO"]["cell_area"] > 1.3 * median["LY"]["cell_area"]


def test_measures_of_a_square_patch_are_those_of_scikit_image_and_scipy_without_a_mask() -> None:
    rng = np.random.default_rng(0)
    patch = np.clip(cv2.GaussianBlur(rng.normal(120, 90, (48, 48, 3)), (0, 0), 1), 1, 255).astype(np.uint8)
    image = np.zeros((96, 96, 3), np.uint8)
    image[20:68, 24:72] = patch
    found = measured(image)
    assert (found["cell_area"], found["cell_extent"], found["cell_solidity"]) == (48 * 48, 1, 1)
    assert found["cell_eccentricity"] == 0
    assert found["cell_equivalent_diameter"] == pytest.approx(np.sqrt(4 / np.pi) * 48)

    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY)
    low, high = np.percentile(grey, [1, 99])
    levels = np.clip(np.floor((grey - low) / (high - low) * 16), 0, 15).astype(np.uint8)
    matrices = graycomatrix(  # type: ignore[no-untyped-call]
        levels, [1, 2, 4], ANGLES, levels=16, symmetric=True, normed=True
    )
    for name in ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy"):
        expected = graycoprops(matrices, name).mean(axis=1)  # type: ignore[no-untyped-call]
        assert [found[f"cell_glcm_{name}_{distance}"] for distance in (1, 2, 4)] == pytest.approx(expected, rel=1e-5)
    patterns = local_binary_pattern(grey, 8, 1, "uniform").astype(int)  # type: ignore[no-untyped-call]
    shares = np.bincount(patterns.ravel(), minlength=10) / 48**2
    assert [found[f"cell_lbp_{k}"] for k in range(10)] == pytest.approx(shares)

    channels = np.concatenate([patch.reshape(-1, 3), rgb2lab(patch).reshape(-1, 3)], axis=1)
    for k, name in enumerate(("red", "green", "blue", "lightness", "a", "b")):
        # OpenCV's L*a*b* comes from tables
        assert found[f"cell_{name}_mean"] == pytest.approx(channels[:, k].mean(), abs=1e-3 if k < 3 else 0.2)
        assert found[f"cell_{name}_deviation"] == pytest.approx(channels[:, k].std(), abs=1e-3 if k < 3 else 0.2)
        assert found[f"cell_{name}_skewness"] == pytest.approx(skew(channels[:, k]), abs=1e-3 if k < 3 else 0.02)


def test_co_occurrence_counts_pairs_inside_the_mask_alone() -> None:
    rng = np.random.default_rng(1)
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 10:18] = image[22:30, 10:30] = 1  # an L
    image *= rng.integers(40, 200, (40, 40, 1), dtype=np.uint8)
    mask, grey = image[:, :, 0] > 0, image[:, :, 0].astype(float)
    low, high = np.percentile(grey[mask], [1, 99])
    levels = np.clip(np.floor((grey - low) / (high - low) * 16), 0, 15)
    found = measured(image)
    for distance, diagonal in ((1, 1), (2, 1), (4, 3)):  # scikit-image rounds distance / sqrt 2
        means = []
        for down, right in ((0, distance), (diagonal, diagonal), (distance, 0), (diagonal, -diagonal)):
            pairs = [
                (levels[y, x] - levels[y + down, x + right]) ** 2
                for y, x in np.argwhere(mask)
                if mask[y + down, x + right]
            ]
            means.append(np.mean(pairs))
        assert found[f"cell_glcm_contrast_{distance}"] == pytest.approx(np.mean(means), rel=1e-5)
    assert found["cell_solidity"] == pytest.approx(mask.sum() / hull_area(mask))


def hull_area(mask: np.ndarray) -> int:
    """Pixels whose middles lie in the convex hull, by drawing it."""
    return int(convex_hull_image(mask, offset_coordinates=False).sum())  # type: ignore[no-untyped-call]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_solidity_is_scikit_images_of_any_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((60, 60, 3), np.uint8)
    cv2.fillPoly(image, [rng.integers(8, 52, (rng.integers(3, 9), 2)).astype(np.int32)], (150, 90, 160))
    mask = cell_masks(image).cell
    assert measured(image)["cell_solidity"] == pytest.approx(mask.sum() / hull_area(mask), abs=0.01)


@pytest.mark.parametrize("turn", range(1, 8))
def test_quarter_turns_and_flips_change_no_measure(turn: int) -> None:
    image = segmented_cells()[0]
    turned = np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4)
    expected, found = measured(image), measured(np.ascontiguousarray(turned))
    for name in NAMES:  # nuclei by smoothing and thresholds, whose last bits follow the order of pixels
        assert found[name] == pytest.approx(expected[name], rel=1e-4 if name.startswith("cell_") else 0.01, abs=2e-3)


@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.integers(16, 48),
    levels=st.integers(1, 255),
    black=st.floats(0, 1),
    smoothing=st.floats(0.1, 4),
)
@settings(max_examples=60, deadline=None)
def test_measures_of_any_image_are_finite(seed: int, side: int, levels: int, black: float, smoothing: float) -> None:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, levels + 1, (side, side, 3), dtype=np.uint8), (0, 0), smoothing)
    image[cv2.GaussianBlur(rng.random((side, side)), (0, 0), smoothing) < black] = 0
    values = measure(np.asarray(image))
    assert values.shape == (len(NAMES),)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_an_image_of_one_grey_has_no_cell_on_black_and_none_in_a_smear(grey: int) -> None:
    image = np.full((64, 64, 3), grey, np.uint8)
    masks = cell_masks(image)
    assert not masks.cell.any()
    assert not masks.nucleus.any()
    assert not measure(image).any()


def test_a_single_pixel_and_a_line_on_black_are_measured() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[30, 30] = 1
    assert measured(image)["cell_area"] == 1
    image[30, 10:50] = (90, 60, 120)
    found = measured(image)
    assert (found["cell_area"], found["cell_solidity"], found["cell_extent"]) == (40, 1, 1)
    assert np.isfinite(measure(image)).all()


def toy(seed: int, classes: int = 3, groups: int = 12, n: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of separable classes on scales that differ by a thousand, their labels and groups."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    labels = (group + rng.integers(0, 2, n)) % classes
    centres = np.array([[0, 0], [5, 0], [0, 5], [5, 5]])[labels]
    features = np.concatenate([centres + rng.normal(size=(n, 2)), rng.normal(size=(n, 1))], axis=1)
    return (features * [1, 1000, 1] + [7, 0, 0]).astype(np.float32), labels, np.array([f"p{g}" for g in group])


def test_separable_classes_are_learnt_and_probabilities_are_calibrated() -> None:
    machine = SupportVectorMachine.fit(*toy(0), classes=3, c=10.0, gamma="scale", seed=0)
    features, labels, _ = toy(1, n=2000)
    logits = machine.logits(features)
    assert logits.shape == (2000, 3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, atol=1e-5)
    assert f1_score(labels, logits.argmax(axis=1), average="weighted") > 0.97
    sure = np.exp(logits.max(axis=1))
    assert sure.mean() == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=0.03)


def test_decisions_are_those_of_scikit_learns_machine_on_standardised_features() -> None:
    features, labels, groups = toy(2, classes=2)
    machine = SupportVectorMachine.fit(features, labels, groups, classes=2, c=3.0, gamma=0.2, seed=0)
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    others, _, _ = toy(3, classes=2)
    expected = ((others - mean) / deviation).astype(np.float32)
    np.testing.assert_allclose(machine.standardised(others), expected, atol=1e-5)
    reference = SVC(C=3.0, gamma=0.2, class_weight="balanced").fit((features - mean) / deviation, labels)
    decisions = reference.decision_function((others - mean) / deviation)
    logits = machine.logits(others)
    between = ((logits > LEAST + 0.01) & (logits < -1e-4)).all(axis=1)
    # Platt: the log-odds are a straight line over the decision values
    odds = logits[between, 1] - logits[between, 0]
    slope, offset = np.polyfit(decisions[between], odds, 1)
    assert slope > 0
    np.testing.assert_allclose(odds, slope * decisions[between] + offset, atol=0.01)


def test_a_saved_machine_has_the_same_bits_and_holds_no_pickles(tmp_path: Path) -> None:
    features, labels, groups = toy(4)
    machine = SupportVectorMachine.fit(features, labels, groups, classes=4, c=10.0, gamma="scale", seed=3)
    machine.save(tmp_path / "fold0" / "svm.npz")
    again = SupportVectorMachine.load(tmp_path / "fold0" / "svm.npz")
    others, _, _ = toy(5)
    assert np.array_equal(again.logits(others), machine.logits(others))
    assert np.array_equal(again.standardised(others), machine.standardised(others))
    with np.load(tmp_path / "fold0" / "svm.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["features", "groups", "labels", "settings"]
    assert [path.name for path in (tmp_path / "fold0").iterdir()] == ["svm.npz"]
    assert machine.logits(others[:0]).shape == (0, 4)
    assert machine.standardised(others[:0]).shape == (0, 3)


def test_a_class_that_is_absent_or_has_one_image_is_never_predicted() -> None:
    features, labels, groups = toy(6)
    labels[0] = 3
    machine = SupportVectorMachine.fit(features, labels, groups, classes=5, c=1.0, gamma="scale", seed=0)
    logits = machine.logits(features)
    assert logits.shape == (240, 5)
    assert logits[:, 3:] == pytest.approx(LEAST)
    np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1, atol=1e-5)


def test_of_one_class_alone_that_class_is_predicted() -> None:
    features, _, groups = toy(7)
    machine = SupportVectorMachine.fit(features, np.full(240, 1), groups, classes=2, c=1.0, gamma="scale", seed=0)
    assert machine.logits(features) == pytest.approx(np.tile([LEAST, 0], (240, 1)))


@given(seed=st.integers(0, 1000), classes=st.integers(2, 4), groups=st.integers(1, 20), n=st.integers(12, 80))
@settings(max_examples=40, deadline=None)
def test_inner_splits_hold_every_image_out_once_and_train_on_every_class(
    seed: int, classes: int, groups: int, n: int
) -> None:
    _, labels, names = toy(seed, classes, groups, n)
    kept = np.bincount(labels)[labels] > 1
    labels, names = labels[kept], names[kept]
    splits = inner_splits(labels, names, seed)
    assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(len(labels)))
    for trained, held_out in splits:
        assert set(labels[trained]) == set(labels)
        assert sorted([*trained, *held_out]) == list(range(len(labels)))


def test_inner_splits_keep_groups_whole_with_fewer_folds_where_a_class_has_few() -> None:
    labels = np.repeat([0, 0, 0, 0, 1, 1], 10)
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], 10)
    splits = inner_splits(labels, groups, 0)
    assert len(splits) == 5
    assert not any(set(groups[trained]) & set(groups[held_out]) for trained, held_out in splits)
    fewer = inner_splits(labels[20:], groups[20:], 0)  # two groups of each class
    assert 2 <= len(fewer) <= 4
    assert not any(set(groups[20:][trained]) & set(groups[20:][held_out]) for trained, held_out in fewer)


def test_inner_splits_split_images_where_a_class_is_in_one_group_alone() -> None:
    labels, groups = np.repeat([0, 0, 1], 10), np.repeat(["a", "b", "c"], 10)
    splits = inner_splits(labels, groups, 0)
    assert len(splits) == 5
    assert [np.bincount(labels[held_out]).tolist() for _, held_out in splits] == [[4, 2]] * 5


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "lacks", "lengths", "not finite", "settings"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "svm.npz"
    features, labels, groups = toy(8, n=60)
    SupportVectorMachine.fit(features, labels, groups, classes=3, c=1.0, gamma="scale", seed=0).save(path)
    with np.load(path) as arrays:
        kept = dict(arrays)
    content = path.read_bytes()
    if damage in ("cut", "text", "empty"):
        path.write_bytes({"cut": content[: len(content) // 2], "text": b"404", "empty": b""}[damage])
    else:
        kept |= {
            "lacks": {},
            "lengths": {"labels": labels[1:]},
            "not finite": {"features": features * np.float32(np.nan)},
            "settings": {"settings": np.array('{"classes": 3}')},
        }[damage]
        if damage == "lacks":
            del kept["groups"]
        np.savez(path, **kept)
    with pytest.raises(UserError, match=r"svm.npz: not a support vector machine \(.*; train that fold again") as raised:
        SupportVectorMachine.load(path)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"svm.npz: no such file; train that fold again"):
        SupportVectorMachine.load(tmp_path / "svm.npz")


def test_a_sigmoid_never_turns_the_machine_upside_down() -> None:
    # Four patients whose look, not their class, is what the features tell: inner machines rank unseen patients wrongly
    found = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 0, 1, 1], 15)
        groups = np.repeat(list("abcd"), 15)
        look = rng.normal(0, 3, (4, 3))[np.repeat(np.arange(4), 15)]
        features = look + rng.normal(0, 1, (60, 3))
        machine = SupportVectorMachine.fit(features, labels, groups, 2, 10, "scale", 0)
        logits = machine.logits(features)
        assert roc_auc_score(labels, logits[:, 1] - logits[:, 0]) > 0.9  # on its own training images
        by_group = CalibratedClassifierCV(
            make_pipeline(StandardScaler(), SVC(C=10, class_weight="balanced")),
            method="sigmoid", cv=inner_splits(labels, groups, 0), ensemble=False,
        ).fit(features, labels)  # fmt: skip
        found += by_group.calibrated_classifiers_[0].calibrators[0].a_ > 0
    assert found  # the case is there
