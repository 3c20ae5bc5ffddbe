"""A configuration meets its data: external rows, duplicates in one fold, what is scored and what is told."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from leukofold.blending.combining import competition_scores
from leukofold.blending.loading import load_run
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.experiment import Experiment, experiment_summary, open_experiment, read_cells
from leukofold.folds import IN_EVERY_TRAINING_SET
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_accelerator
from leukofold.training.trainer import Trainer


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A rendered competition with planted duplicates, and rendered external sets."""
    folder = tmp_path_factory.mktemp("sets")
    spec = RenderSpec(images=90, test_images=14, patients=20, exact_duplicates=4, near_duplicates=3)
    render("wbcbench", folder / "wbcbench", spec, workers=1, progress=False)
    for name, images in (("acevedo", 60), ("blood8", 60), ("cellwiki", 6)):
        render(name, folder / name, RenderSpec(images=images, seed=5), workers=1, progress=False)
    return {name: folder / name for name in ("wbcbench", "acevedo", "blood8", "cellwiki")}


def make_config(roots: dict[str, Path], tmp_path: Path, external: list[str], **sections: dict[str, Any]) -> Config:
    """The smallest configuration that trains on some of the sets."""
    base: dict[str, dict[str, Any]] = {
        "data": {
            "root": roots["wbcbench"],
            "cache": tmp_path / "cache",
            "workers": 0,
            "external": {name: {"root": roots[name], "partial": True} for name in external},
        },
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0.5},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return Config.model_validate(base)


def opened(roots: dict[str, Path], tmp_path: Path, external: list[str], **sections: dict[str, Any]) -> Experiment:
    """Opens an experiment on some of the sets."""
    config = make_config(roots, tmp_path, external, **sections)
    return open_experiment(config, RunFolder("run", tmp_path / "oof"), progress=False)


def truth(root: Path) -> pd.DataFrame:
    """What was rendered."""
    return pd.read_csv(root / "rendered_truth.csv", dtype=str, keep_default_na=False)


def test_external_rows_come_after_the_competitions_under_their_own_source(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    table = read_cells(make_config(roots, tmp_path, ["acevedo", "cellwiki"]), progress=False)
    own = get_competition("wbcbench").read(roots["wbcbench"]).frame
    pd.testing.assert_frame_equal(table.frame.head(len(own)), own)
    external = table.frame.iloc[len(own) :]
    assert external.is_external.all()
    assert external.source.unique().tolist() == ["acevedo", "cellwiki"]
    assert (external.source == "cellwiki").sum() == 6
    assert set(external.label[external.source == "cellwiki"]) == {table.class_names.index("PLY")}
    assert not table.test.is_external.any()


def test_the_competitions_folds_are_the_same_with_and_without_external_data(
    roots: dict[str, Path], tmp_path: Path
) -> None:
    alone = opened(roots, tmp_path, [])
    expanded = opened(roots, tmp_path, ["acevedo", "cellwiki"])
    assert expanded.folds[: len(alone.folds)].tolist() == alone.folds.tolist()
    added = expanded.folds[len(alone.folds) :]
    assert sorted(set(added.tolist())) == [0, 1]
    assert expanded.table.fingerprint() != alone.table.fingerprint()


def test_planted_duplicates_are_kept_in_one_fold(roots: dict[str, Path], tmp_path: Path) -> None:
    experiment = opened(roots, tmp_path, [])
    planted = truth(roots["wbcbench"])
    planted = planted[planted.duplicate_of != ""]
    fold_of = dict(zip(experiment.labelled.path.map(Path), experiment.folds, strict=True))
    group_of = dict(zip(experiment.labelled.path.map(Path), experiment.labelled.group, strict=True))
    pairs = [
        (roots["wbcbench"] / a, roots["wbcbench"] / b) for a, b in zip(planted.path, planted.duplicate_of, strict=True)
    ]
    assert len(experiment.duplicates) == len(pairs) == 7
    labelled = [(a, b) for a, b in pairs if a in fold_of and b in fold_of]
    assert labelled  # others touch the test set
    assert all(fold_of[a] == fold_of[b] and group_of[a] == group_of[b] for a, b in labelled)
    assert "7 pairs of images are the same and kept in one fold" in experiment_summary(experiment)


def test_an_image_level_split_keeps_duplicates_together_too(roots: dict[str, Path], tmp_path: Path) -> None:
    experiment = opened(roots, tmp_path, [], folds={"by": "image", "count": 3})
    planted = truth(roots["wbcbench"])
    fold_of = dict(zip(experiment.labelled.path.map(Path), experiment.folds, strict=True))
    pairs = [
        (roots["wbcbench"] / a, roots["wbcbench"] / b)
        for a, b in zip(planted.path, planted.duplicate_of, strict=True)
        if b and roots["wbcbench"] / a in fold_of and roots["wbcbench"] / b in fold_of
    ]
    assert all(fold_of[a] == fold_of[b] for a, b in pairs)
    spread = pd.Series(experiment.folds).groupby(experiment.labelled.group.to_numpy()).nunique()
    assert spread.max() == 3  # patients do cross
    assert "folds by image  (image-level: patients cross folds, scores are too high)" in experiment_summary(experiment)


def test_copies_in_two_external_sets_share_a_fold(roots: dict[str, Path], tmp_path: Path) -> None:
    # the rendered blood8 holds copies of acevedo's images under other class names
    experiment = opened(roots, tmp_path, ["acevedo", "blood8"])
    labelled = experiment.labelled[experiment.labelled.is_external].assign(
        fold=experiment.folds[experiment.labelled.is_external]
    )
    shared = labelled.groupby("group").filter(lambda part: part.source.nunique() == 2)
    assert len(shared) > 20
    assert (shared.groupby("group").fold.nunique() == 1).all()


def test_external_images_can_be_in_every_training_set(roots: dict[str, Path], tmp_path: Path) -> None:
    experiment = opened(roots, tmp_path, ["acevedo"], folds={"external": "train"})
    external = experiment.labelled.is_external.to_numpy()
    assert (experiment.folds[external] == IN_EVERY_TRAINING_SET).all()
    trainer = Trainer(experiment, 0, make_accelerator(experiment.config.training, experiment.run))
    assert trainer.train_frame.is_external.sum() == external.sum()
    assert not trainer.held_out.is_external.any()


def test_a_run_with_external_data_is_judged_by_the_competitions_rows(roots: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(roots, tmp_path, ["acevedo", "cellwiki"], mixing={"cutmix": 0.4, "mixup": 0.4})
    run = RunFolder("expanded", tmp_path / "oof")
    train_folds(config, run, [0, 1], resume=False, debug=False)
    loaded = load_run(run)
    assert loaded.oof.label is not None
    own = ~loaded.oof.is_external
    assert 0 < own.sum() < len(own)
    assert len(np.unique(loaded.oof.image_id)) == len(own)
    predictions = loaded.oof.logits.argmax(axis=1)
    expected = f1_score(loaded.oof.label[own], predictions[own], labels=range(13), average="macro", zero_division=0)
    assert competition_scores(loaded.oof)["macro_f1"] == pytest.approx(expected)
    metrics = run.fold(0).metrics()
    assert metrics["competition_rows"]["images"] == (own & (loaded.folds == 0)).sum()
    assert metrics["all_rows"]["images"] == (loaded.folds == 0).sum()
    history = pd.read_csv(run.fold(0).history)
    part = own & (loaded.folds == 0)
    single = loaded.oof.single_view[part].argmax(axis=1)
    assert history.macro_f1.iloc[0] == pytest.approx(
        f1_score(loaded.oof.label[part], single, labels=range(13), average="macro", zero_division=0)
    )
    assert run.fold(0).metadata()["external"] == ["acevedo", "cellwiki"]
    assert run.fold(0).metadata()["rendered"] is True


def test_mixing_is_bit_reproducible_and_resumable(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(roots, tmp_path, [], mixing={"cutmix": 0.5, "mixup": 0.5}, training={"epochs": 2})
    epoch, logits = Trainer._epoch, []

    def interrupted(trainer: Trainer) -> None:
        if trainer.progress.epoch == 1:
            raise KeyboardInterrupt
        epoch(trainer)

    for name in ("whole", "broken"):
        run = RunFolder(name, tmp_path / "oof")
        if name == "broken":
            with monkeypatch.context() as patched:
                patched.setattr(Trainer, "_epoch", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    train_folds(config, run, [0], resume=False, debug=False)
        train_folds(config, run, [0], resume=True, debug=False)
        logits.append(run.fold(0).predictions("oof").logits)
    assert np.array_equal(logits[0], logits[1])
    plain = RunFolder("plain", tmp_path / "oof")
    unmixed = config.model_copy(update={"mixing": type(config.mixing)()})
    train_folds(unmixed, plain, [0], resume=False, debug=False)
    assert not np.array_equal(plain.fold(0).predictions("oof").logits, logits[0])


@pytest.mark.parametrize(
    ("external", "said"),
    [
        ({"acevedoo": {}}, r"data.external: unknown data set 'acevedoo'; did you mean 'acevedo'\?"),
        ({"acevedo": {"root": "nowhere"}}, "nowhere: the folder of Acevedo-20 does not exist; "),
        ({"cellwiki": {"classes": ["PC"]}}, "data.external.cellwiki.classes: .* has no class 'PC'"),
        ({"acevedo": {"partial": False}}, "fewer images than published .*data.external.acevedo.partial: true"),
    ],
)
def test_external_sets_that_are_not_what_was_asked_for_are_named(
    roots: dict[str, Path], tmp_path: Path, external: dict[str, dict[str, Any]], said: str
) -> None:
    sections = {name: {"root": roots.get(name), **settings} for name, settings in external.items()}
    config = make_config(roots, tmp_path, [], data={"root": roots["wbcbench"], "external": sections})
    with pytest.raises(UserError, match=said):
        read_cells(config, progress=False)


def test_an_external_copy_of_a_competition_image_moves_no_fold(roots: dict[str, Path], tmp_path: Path) -> None:
    copied = tmp_path / "acevedo" / "basophil"
    copied.mkdir(parents=True)
    alone = opened(roots, tmp_path, [])
    own = alone.labelled[alone.labelled.split == "phase2_train"].iloc[5]
    shutil.copy(own.path, copied / "BA_1.jpg")
    shutil.copy(next((roots["acevedo"]).rglob("BA_*.jpg")), copied / "BA_2.jpg")
    expanded = opened({**roots, "acevedo": tmp_path / "acevedo"}, tmp_path, ["acevedo"])
    assert len(expanded.duplicates) == len(alone.duplicates) + 1
    assert expanded.folds[: len(alone.folds)].tolist() == alone.folds.tolist()
    assert expanded.labelled.group[: len(alone.folds)].tolist() == alone.labelled.group.tolist()
    twin = expanded.labelled.image_id.tolist().index("acevedo/basophil/BA_1.jpg")
    assert expanded.folds[twin] == alone.folds[alone.labelled.image_id.tolist().index(own.image_id)]


def test_debug_keeps_some_of_everything(roots: dict[str, Path], tmp_path: Path) -> None:
    for external in ("split", "train"):
        config = make_config(roots, tmp_path, ["acevedo"], folds={"external": external})
        experiment = open_experiment(config, RunFolder("debug", tmp_path / "oof"), debug=True, progress=False)
        own = opened(roots, tmp_path, ["acevedo"], folds={"external": external})
        sizes = np.bincount(own.folds[~own.labelled.is_external], minlength=2)
        counts = experiment.labelled.groupby("is_external").size()
        assert counts[False] == np.minimum(sizes, 32).sum()
        assert counts[True] > 20


def test_a_data_set_does_not_expand_itself(roots: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(roots, tmp_path, ["acevedo"])
    data = config.data.model_copy(update={"competition": "acevedo", "root": roots["acevedo"]})
    with pytest.raises(UserError, match=r"data.external.acevedo: is what is trained on already; take it out"):
        read_cells(config.model_copy(update={"data": data}), progress=False)
