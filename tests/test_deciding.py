"""Thresholds matched to the training set's share of classes, by hand, and what a submission tells of them."""

import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import load_run
from leukofold.deciding import by_highest_logit, by_training_prior, matched_threshold
from leukofold.errors import UserError
from leukofold.metrics import score

if TYPE_CHECKING:
    from tests.conftest import Commands, RunMaker

COUNTS = {"hem": 30, "all": 10}


def test_a_quarter_of_the_images_lies_above_the_threshold() -> None:
    lead = np.array([3.0, -1.0, 0.5, 2.0])
    logits = np.stack([np.full(4, 7.0), 7.0 + lead], axis=1)
    assert matched_threshold(logits, 0.25) == 2.5  # between 3 and 2
    assert matched_threshold(logits, 0.5) == 1.25
    assert matched_threshold(logits, 0.0) == 4.0  # one beyond the highest
    assert matched_threshold(logits, 1.0) == -2.0


@given(arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=32), unique=True), st.floats(0, 1))
def test_the_share_above_is_the_nearest_that_there_can_be(lead: np.ndarray, share: float) -> None:
    logits = np.stack([np.zeros_like(lead), lead], axis=1)
    above = (lead.astype(np.float64) > matched_threshold(logits, share)).sum()
    assert above == round(share * len(lead))


def test_each_fold_is_matched_by_itself_and_the_test_images_together(cnmc_runs: "RunMaker") -> None:
    made = cnmc_runs.make("one", training_images=COUNTS)
    blend = blend_runs([load_run(made.folder)])
    decision = by_training_prior(blend)
    assert decision.prior == 0.25
    assert decision.labels.sum() == round(0.25 * len(blend.test.image_id))
    lead = blend.test.logits[:, 1].astype(float) - blend.test.logits[:, 0]
    assert set(np.flatnonzero(decision.labels)) == set(np.argsort(-lead)[: decision.labels.sum()])
    predicted = np.zeros(len(blend.folds), int)
    for fold in set(blend.folds.tolist()):
        rows = np.flatnonzero(blend.folds == fold)
        lead = blend.oof.logits[rows, 1].astype(float) - blend.oof.logits[rows, 0]
        predicted[rows[np.argsort(-lead)[: round(0.25 * len(rows))]]] = 1
    assert blend.oof.label is not None
    assert decision.oof == score(blend.oof.label, np.eye(2)[predicted])
    assert by_highest_logit(blend).labels.tolist() == blend.test.logits.argmax(axis=1).tolist()


def test_the_submission_has_the_training_share_and_tells_how(cnmc_runs: "RunMaker", commands: "Commands") -> None:
    cnmc_runs.make("one", training_images=COUNTS)
    output = commands.succeed("blend.py", "--run", "one", "--match-prior")
    path = commands.cwd / "submissions/cnmc/one-prior.zip"
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("isbi_valid.predict").decode().split()
    assert len(lines) == 12
    assert lines.count("1") == 3
    origin = json.loads(path.with_suffix(".json").read_text())
    assert origin["decision"]["rule"] == "training prior"
    assert origin["decision"]["prior"] == 0.25
    assert origin["predicted"] == {"hem": 9, "all": 3}
    matched, plain = origin["decision"]["oof"]["weighted_f1"], origin["oof"]["weighted_f1"]
    assert "for the training images' share of all, 0.2500; weighted F1 out of fold, each fold" in output
    assert f"matched by itself, {matched:.4f} in place of {plain:.4f}" in output
    commands.succeed("blend.py", "--run", "one")
    plain = json.loads((commands.cwd / "submissions/cnmc/one.json").read_text())
    assert plain["decision"] == {"rule": "highest logit"}


def test_what_cannot_be_matched_is_refused(cnmc_runs: "RunMaker", wbc_runs: "RunMaker") -> None:
    old = blend_runs([load_run(cnmc_runs.make("old").folder)])
    with pytest.raises(UserError, match=r"metadata\.json does not tell the training images' classes; train the run"):
        by_training_prior(old)


def test_more_than_two_classes_have_no_threshold(wbc_runs: "RunMaker") -> None:
    many = blend_runs([load_run(wbc_runs.make("many").folder)])
    with pytest.raises(UserError, match="a threshold lies between two classes, wbcbench has 13"):
        by_training_prior(many)
