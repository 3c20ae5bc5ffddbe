"""Files of predictions that are not sound are refused by name."""

from typing import TYPE_CHECKING

import numpy as np
import pytest

from leukofold.errors import UserError
from leukofold.runs import Predictions

if TYPE_CHECKING:
    from tests.conftest import RunMaker


@pytest.mark.parametrize(("array", "kind"), [("logits", "oof"), ("single_view", "test")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(wbc_runs: "RunMaker", array: str, kind: str, value: float) -> None:
    path = wbc_runs.make("run").folder.fold(0).path / f"{kind}.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[array][1, 0] = value
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"{array} of 1 images are not finite, {arrays['image_id'][1]} first; train"):
        Predictions.load(path)


def test_logits_of_another_number_of_classes_are_refused(wbc_runs: "RunMaker") -> None:
    path = wbc_runs.make("run").folder.fold(0).path / "oof.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["logits"] = arrays["logits"][:, :12]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"logits \(10, 12\) for 10 images and 13 classes; train that fold again"):
        Predictions.load(path)
