"""Scoring: the eight views, their average, and the order of rows."""

import torch
from torch import nn

from leukofold.inference import dihedral_views, mean_logits, tta_views


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


def test_logits_are_averaged_over_the_views() -> None:
    images = torch.tensor([[1, 2], [3, 6]], dtype=torch.uint8).view(1, 1, 2, 2)
    assert mean_logits(Corner(), images, dihedral_views()).item() == (1 + 2 + 3 + 6) * 2 / 8
    assert mean_logits(Corner(), images, tta_views("none")).item() == 1
