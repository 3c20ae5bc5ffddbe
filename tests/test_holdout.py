"""Hold-outs and the competition's own splits: who is trained on, who is scored, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukofold.blending.loading import caveats, load_run
from leukofold.competitions import get_competition
from leukofold.config import CONFIG_FOLDER, Config, FoldsConfig, load_config
from leukofold.errors import UserError
from leukofold.experiment import experiment_summary, open_experiment, read_competition
from leukofold.folds import HOLDOUT, IN_EVERY_TRAINING_SET, NOWHERE, assign_folds, training_rows
from leukofold.metrics import score
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

SHARES = st.sampled_from([0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5])


def rows(labels: object, groups: object, splits: object = "train") -> pd.DataFrame:
    label, group = np.asarray(labels), np.asarray(groups).astype(str)
    ids = [f"{i:04d}.jpg" for i in range(len(label))]
    return pd.DataFrame({"image_id": ids, "label": label, "group": group, "is_external": False, "split": splits})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), SHARES, st.integers(2, 4))
def test_a_share_holds_whole_patients_out_of_every_fold(seed: int, share: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    labels = (rng.random(60) < 0.6).astype(int)[groups]  # a patient has one class
    frame = rows(labels, groups)
    config = FoldsConfig(count=count, seed=seed % 1000, holdout=share)
    folds = assign_folds(frame, frame.group.to_numpy(), config)
    assert set(folds) == {HOLDOUT, *range(count)}
    assert pd.Series(folds).groupby(groups).nunique().max() == 1
    held = folds == HOLDOUT
    assert abs(held.mean() - share) < 0.08
    for fold in range(count):
        kept = training_rows(frame, folds, config, fold)
        assert kept.tolist() == (~held & (folds != fold)).tolist()


def test_the_hold_out_has_the_classes_in_their_shares() -> None:
    groups = np.repeat(np.arange(100), 10)
    labels = np.repeat([0] * 70 + [1] * 30, 10)
    frame = rows(labels, groups)
    folds = assign_folds(frame, frame.group.to_numpy(), FoldsConfig(holdout=0.1))
    assert np.bincount(labels[folds == HOLDOUT]).tolist() == [70, 30]


def test_an_image_level_hold_out_spreads_patients() -> None:
    frame = rows(np.arange(200) % 2, np.repeat(np.arange(10), 20))
    config = FoldsConfig(by="image", holdout=0.2)
    folds = assign_folds(frame, frame.image_id.to_numpy(), config)
    held = folds == HOLDOUT
    assert held.sum() == 40
    assert training_rows(frame, folds, config, 0).tolist() == (~held & (folds != 0)).tolist()
    assert set(frame.group[held]) & set(frame.group[~held])


def test_splits_are_held_out_a_fold_each_and_the_others_are_always_trained_on() -> None:
    splits = np.repeat(["train", "a", "b"], [6, 3, 3])
    frame = rows([0, 1] * 6, np.arange(12), splits)
    config = FoldsConfig(by="split", splits=("b", "a"))
    assert config.count == 2
    folds = assign_folds(frame, frame.group.to_numpy(), config)
    assert folds.tolist() == [IN_EVERY_TRAINING_SET] * 6 + [1] * 3 + [0] * 3
    assert training_rows(frame, folds, config, 0).tolist() == [True] * 9 + [False] * 3


def test_a_patient_in_several_splits_is_never_on_both_sides() -> None:
    splits = np.repeat(["train", "prelim"], [6, 4])
    frame = rows([0, 1] * 5, ["p", "p", "q", "q", "r", "r", "p", "s", "s", "t"], splits)  # p is in both
    config = FoldsConfig(by="split", splits=("prelim",))
    folds = assign_folds(frame, frame.group.to_numpy(), config)
    kept = training_rows(frame, folds, config, 0)
    assert frame.group[kept].tolist() == ["q", "q", "r", "r"]
    named = FoldsConfig(count=2, holdout="prelim")
    folds = assign_folds(frame, frame.group.to_numpy(), named)
    assert (folds == HOLDOUT).tolist() == (splits == "prelim").tolist()
    assert (folds == NOWHERE).tolist() == [True, True] + [False] * 8  # p decides nothing in the folds either
    for fold in (0, 1):
        assert "p" not in set(frame.group[training_rows(frame, folds, named, fold)])


def test_a_copy_of_a_held_out_image_is_not_trained_on_under_an_image_level_split_either() -> None:
    frame = rows([0, 1] * 6, np.arange(12) % 5, np.repeat(["train", "prelim"], [8, 4]))
    units = frame.image_id.to_numpy().copy()
    units[1] = units[9]  # the same image
    config = FoldsConfig(count=2, by="image", holdout="prelim")
    folds = assign_folds(frame, units, config)
    assert folds[[1, 9]].tolist() == [NOWHERE, HOLDOUT]
    for fold in (0, 1):
        assert not training_rows(frame, folds, config, fold)[[1, 9]].any()
    assert pd.Series(folds[[0, *range(2, 8)]]).isin([0, 1]).all()


def test_a_copy_of_a_held_out_image_among_external_ones_is_never_trained_on() -> None:
    frame = rows([0, 1] * 10, np.arange(20))
    frame = pd.concat([frame, frame.iloc[:20].assign(image_id=[f"x{i}" for i in range(20)], is_external=True)])
    frame = frame.reset_index(drop=True)
    config = FoldsConfig(count=2, holdout=0.2, external="train")
    folds = assign_folds(frame, frame.group.to_numpy(), config)
    inside = folds[:20] >= 0
    assert folds[:20][inside].tolist() == folds[20:][inside].tolist()
    assert (folds[20:][~inside] == NOWHERE).all()
    assert not training_rows(frame, folds, config, 0)[folds < 0].any()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"by": "split"}, "splits: name the competition's splits that are held out"),
        ({"by": "split", "splits": ["a", "a"]}, "each once"),
        ({"splits": ["a"]}, "splits: goes with by: split"),
        ({"count": 1}, "count: 1 is too few; give at least 2"),
        ({"by": "split", "splits": ["a"], "holdout": "a"}, "holdout: a is a fold already"),
        ({"holdout": 0.7}, "less than or equal to 0.5"),
    ],
)
def test_settings_that_make_no_folds_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FoldsConfig.model_validate(settings_)


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    frame = rows([0, 1] * 6, np.arange(12), np.repeat(["train", "a"], 6))
    for config in (FoldsConfig(holdout="prelim"), FoldsConfig(by="split", splits=("prelim",))):
        with pytest.raises(UserError, match=r"no labelled image is of a split 'prelim'; there are train, a"):
            assign_folds(frame, frame.group.to_numpy(), config)
    with pytest.raises(UserError, match=r"folds.holdout: 10 folds need as many groups, the input has 4"):
        assign_folds(rows([0, 1] * 6, np.arange(12) % 4), np.arange(12) % 4, FoldsConfig(count=2, holdout=0.1))


def small(root: Path, tmp_path: Path, config: str) -> Config:
    """A published configuration at a reduced size, on rendered images."""
    return load_config(
        [CONFIG_FOLDER / "cnmc" / config],
        [
            f"data.root={root}",
            f"data.cache={tmp_path / 'cache'}",
            "data.workers=0",
            "image.size=32",
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "training.epochs=2",
        ],
    )


def test_the_preliminary_set_is_one_fold_that_everything_else_is_trained_for(
    rendered_cnmc: Path, tmp_path: Path
) -> None:
    config = small(rendered_cnmc, tmp_path, "paper002/preliminary.yaml")
    run = RunFolder("preliminary", tmp_path / "oof")
    train_folds(config, run, config.folds.numbers, resume=False, debug=False)
    table = get_competition("cnmc").read(rendered_cnmc)
    prelim = table.labelled[table.labelled.split == "prelim"]
    loaded = load_run(run)
    assert sorted(loaded.oof.image_id) == sorted(prelim.image_id)
    assert loaded.missing_folds == []
    assert loaded.holdout is None
    assert loaded.metadata["split_by"] == "split"
    assert not np.array_equal(loaded.oof.logits, loaded.oof.single_view)  # eight rotations
    assert (loaded.oof.logits[:, 0] == 0).all()  # one logit
    history = pd.read_csv(run.fold(0).history)
    best = history.weighted_f1.max()
    assert run.fold(0).metrics()["competition_rows"]["weighted_f1"] == pytest.approx(best)  # scored as it was chosen
    without = run.fold(0).metrics()["competition_rows_without_tta"]["weighted_f1"]
    chosen = history.epoch == run.fold(0).metrics()["best_epoch"]
    assert history.weighted_f1_without_tta[chosen].item() == pytest.approx(without)
    summary = experiment_summary(open_experiment(config, run))
    assert "1 fold by split: prelim" in summary
    assert "patients cross" not in summary
    assert (
        caveats([loaded])[-1] == "OPTIMISTIC: the epochs were chosen on prelim, the images that are scored out of fold"
    )


@pytest.mark.parametrize("name", ["paper002/preliminary", "paper002/honest", "paper004/resnet50_frozen"])
def test_a_few_batches_of_everything_have_both_classes(name: str, rendered_cnmc: Path, tmp_path: Path) -> None:
    config = small(rendered_cnmc, tmp_path, f"{name}.yaml")
    run = RunFolder("debug", tmp_path / "oof")
    train_folds(config, run, [0], resume=False, debug=True)
    counts = run.fold(0).metadata()["training_images"]
    assert min(counts.values()) > 0
    assert len(set(run.fold(0).predictions("oof").label.tolist())) == 2  # type: ignore[union-attr]


def test_the_competition_s_splits_can_be_chosen(rendered_cnmc: Path, tmp_path: Path) -> None:
    config = load_config([CONFIG_FOLDER / "cnmc/paper004/base.yaml"], [f"data.root={rendered_cnmc}"])
    whole, table = get_competition("cnmc").read(rendered_cnmc), read_competition(config)
    assert set(table.labelled.split) == {"fold_0", "fold_1", "fold_2"}
    assert len(table.labelled) == (whole.labelled.split != "prelim").sum()
    assert table.test.image_id.tolist() == whole.test.image_id.tolist()
    config = load_config([CONFIG_FOLDER / "demo_cnmc.yaml"], [f"data.root={rendered_cnmc}", "data.splits=[fold_7]"])
    with pytest.raises(UserError, match=r"data\.splits: no labelled image is of a split 'fold_7'; there are fold_0"):
        read_competition(config)


def test_the_honest_alternative_scores_the_preliminary_set_by_every_fold(rendered_cnmc: Path, tmp_path: Path) -> None:
    config = small(rendered_cnmc, tmp_path, "paper002/honest.yaml")
    config = config.model_copy(update={"folds": config.folds.model_copy(update={"count": 2})})
    run = RunFolder("honest", tmp_path / "oof")
    train_folds(config, run, [0, 1], resume=False, debug=False)
    table = get_competition("cnmc").read(rendered_cnmc)
    prelim = table.labelled[table.labelled.split == "prelim"]
    loaded = load_run(run)
    assert sorted(loaded.oof.image_id) == sorted(table.labelled.image_id[table.labelled.split != "prelim"])
    assert len(loaded.holdouts) == 2
    assert loaded.holdout is not None
    assert loaded.holdout.image_id.tolist() == prelim.image_id.tolist()
    assert loaded.holdout.label is not None
    assert loaded.holdout.label.tolist() == prelim.label.tolist()
    mean = (loaded.holdouts[0].logits.astype(float) + loaded.holdouts[1].logits) / 2
    assert loaded.holdout.logits == pytest.approx(mean, abs=1e-6)
    for k, part in enumerate(loaded.holdouts):
        assert part.label is not None
        noted = run.fold(k).metrics()["holdout_rows"]
        scores = {"images": len(prelim), **score(part.label, part.logits)}
        assert noted == {**scores, "parts": {"prelim": scores}}
    summary = experiment_summary(open_experiment(config, run))
    groups = prelim.group.nunique()
    assert f"hold-out, the split prelim: {len(prelim)} images of {groups} groups that no fold trains on" in summary
    damaged = run.fold(1).path / "holdout.npz"
    damaged.unlink()
    with pytest.raises(UserError, match=r"holdout\.npz: no such file; train that fold again"):
        load_run(run)
