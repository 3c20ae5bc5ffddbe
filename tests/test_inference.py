"""Test-time views: symmetries and turns of the image, their average, and the image as it is."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leukofold.config import InferenceConfig
from leukofold.inference import dihedral_views, rotate, tta_views, view_logits


def test_the_dihedral_views_are_the_eight_distinct_symmetries_of_the_square() -> None:
    image = torch.arange(9).view(1, 1, 3, 3)
    seen = {tuple(view(image).flatten().tolist()) for view in dihedral_views()}
    assert len(seen) == 8
    assert torch.equal(dihedral_views()[0](image), image)
    for view in dihedral_views():  # a symmetry keeps the centre and moves corners to corners
        turned = view(image)[0, 0]
        assert turned[1, 1] == 4
        assert {int(turned[i, j]) for i in (0, 2) for j in (0, 2)} == {0, 2, 6, 8}


class Corner(nn.Module):
    """Answers with the value of the top left pixel, so that every view gives another answer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns n x 1."""
        return images[:, 0, 0, :1].float()


def test_logits_are_averaged_over_the_views_beside_those_of_the_image_as_it_is() -> None:
    images = torch.tensor([[1, 2], [3, 6]], dtype=torch.uint8).view(1, 1, 2, 2)
    assert view_logits(Corner(), images, dihedral_views()).tolist() == [[[(1 + 2 + 3 + 6) * 2 / 8], [1]]]
    assert view_logits(Corner(), images, tta_views(InferenceConfig(tta="none"))).tolist() == [[[1], [1]]]


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@given(st.integers(0, 3), st.integers(2, 9), st.integers(0, 2**31 - 1))
def test_quarter_turns_are_exact(interpolation: str, quarters: int, side: int, seed: int) -> None:
    images = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(seed))
    turned = rotate(images.to(torch.uint8), 90.0 * quarters, "black", interpolation)
    assert turned.dtype == torch.float32
    assert torch.allclose(turned, torch.rot90(images, quarters, dims=(2, 3)).float(), atol=0.05)


@pytest.mark.parametrize("degrees", [22.5, 45.0, 137.0])
def test_any_turn_agrees_with_opencv(degrees: float) -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 3)
    centre = (31.5, 31.5)
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    expected = cv2.warpAffine(image.astype(np.float32), matrix, (64, 64), flags=cv2.INTER_LINEAR)
    ours = rotate(torch.from_numpy(image).permute(2, 0, 1)[None], degrees, "black", "bilinear")[0]
    disc = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 30  # what no turn moves out of the picture
    assert np.abs(ours.permute(1, 2, 0).numpy() - expected)[disc].max() < 1.5


def test_turns_are_exact_in_reduced_precision_too() -> None:
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = rotate(images, 90, "reflect", "bilinear")
    assert torch.allclose(reduced, torch.rot90(images, 1, dims=(2, 3)).float(), atol=0.05)


def test_corners_are_mirrored_or_black() -> None:
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert rotate(white, 45, "black", "bilinear")[0, :, 0, 0].tolist() == [0, 0, 0]
    assert rotate(white, 45, "reflect", "bilinear").min() == pytest.approx(255, abs=0.01)


def test_rotation_views_are_equal_angles_of_the_image_and_its_mirror_image() -> None:
    config = InferenceConfig(tta="rotations", angles=8, mirrored=True)
    disc = torch.zeros(1, 1, 33, 33)
    disc[0, 0, 16, 28] = 255  # a spot to the right of the centre
    disc[0, 0, 13, 20] = 100  # and one that tells mirror images apart
    blurred = torch.nn.functional.avg_pool2d(disc, 3, 1, 1)
    views = tta_views(config)
    assert len(views) == 16
    assert torch.equal(views[0](blurred), blurred)
    shown = torch.cat([view(blurred).float() for view in views]).flatten(1)
    assert len(torch.unique(shown.round(), dim=0)) == 16
    rows, columns = zip(*[divmod(int(image.argmax()), 33) for image in shown], strict=True)
    angles = np.degrees(np.arctan2(16 - np.array(rows), np.array(columns) - 16)) % 360
    expected = [45 * k for k in range(8)] + [(180 + 45 * k) % 360 for k in range(8)]
    assert np.abs((angles - expected + 180) % 360 - 180).max() < 6
    assert len(tta_views(config.model_copy(update={"mirrored": False}))) == 8
