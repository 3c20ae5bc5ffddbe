"""Folds: no group crosses them, every row has one, rare classes survive, and dishonest ones are refused."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from leukofold.competitions import get_competition
from leukofold.config import FoldsConfig
from leukofold.errors import UserError
from leukofold.folds import IN_EVERY_TRAINING_SET, check_folds, take_up_folds
from leukofold.folds import assign_folds as assign_units


def rows(labels: object, groups: object) -> pd.DataFrame:
    label, group = np.asarray(labels), np.asarray(groups).astype(str)
    ids = [f"{i:04d}.jpg" for i in range(len(label))]
    return pd.DataFrame({"image_id": ids, "label": label, "group": group, "is_external": False, "split": "train"})


def assign_folds(frame: pd.DataFrame, config: FoldsConfig) -> np.ndarray:
    """Splits rows without duplicates: the units are groups, or images."""
    return assign_units(frame, frame["group" if config.by == "group" else "image_id"].to_numpy(), config)


@st.composite
def labelled_rows(draw: DrawFn) -> tuple[pd.DataFrame, int]:
    """Draws rows in groups of any sizes, with common and rare classes, and a number of folds that can be made."""
    count = draw(st.integers(2, 6))
    n_groups = draw(st.integers(count, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = np.maximum(1, rng.geometric(draw(st.floats(0.05, 1.0)), n_groups)).clip(max=40)
    groups = np.repeat(np.arange(n_groups), sizes)
    labels = rng.choice(13, len(groups), p=rng.dirichlet(np.full(13, 0.3)))
    labels[rng.permutation(len(groups))[:count]] = 0  # one class at least reaches every fold
    rare = draw(st.integers(0, 2))
    labels[rng.permutation(np.flatnonzero(labels != 0))[:rare]] = 13  # a class of one or two images
    order = rng.permutation(len(groups))
    return rows(labels[order], groups[order]), count


def assigned(frame: pd.DataFrame, config: FoldsConfig) -> np.ndarray | None:
    """None where the split would leave a fold empty, which is refused in so many words."""
    try:
        return assign_folds(frame, config)
    except UserError as error:
        assert "is empty, too few groups" in str(error)  # noqa: PT017
        assert frame.group.nunique() < 4 * config.count
        return None


@settings(max_examples=80, deadline=None)
@given(labelled_rows(), st.integers(0, 1000))
def test_groups_stay_whole_and_every_row_is_in_one_fold(drawn: tuple[pd.DataFrame, int], seed: int) -> None:
    frame, count = drawn
    folds = assigned(frame, FoldsConfig(count=count, seed=seed))
    if folds is None:
        return
    assert folds.shape == (len(frame),)
    assert sorted(set(folds.tolist())) == list(range(count))
    crossing = [group for group, part in pd.Series(folds).groupby(frame.group.to_numpy()) if part.nunique() > 1]
    assert crossing == []
    assert folds.tolist() == assign_folds(frame, FoldsConfig(count=count, seed=seed)).tolist()


@settings(max_examples=40, deadline=None)
@given(labelled_rows(), st.integers(0, 1000))
def test_an_image_level_split_spreads_every_class_evenly(drawn: tuple[pd.DataFrame, int], seed: int) -> None:
    frame, count = drawn
    folds = assign_folds(frame, FoldsConfig(count=count, seed=seed, by="image"))
    table = pd.crosstab(frame.label, folds)
    assert table.to_numpy().sum() == len(frame)
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1


def test_classes_with_one_and_two_images_survive_and_reach_as_many_folds() -> None:
    labels = [0] * 60 + [1] * 30 + [2, 2, 3]
    folds = assign_folds(rows(labels, range(93)), FoldsConfig(count=5))
    assert len(set(folds[90:92])) == 2
    assert np.abs(np.bincount(folds[:60]) - 12).max() <= 1  # exact with scikit-learn 1.9, nearly with 1.7
    assert np.abs(np.bincount(folds[60:90]) - 6).max() <= 1


def test_another_seed_gives_another_split() -> None:
    frame = rows(np.arange(200) % 4, np.arange(200) // 2)
    splits = {tuple(assign_folds(frame, FoldsConfig(seed=seed)).tolist()) for seed in range(4)}
    assert len(splits) == 4


@pytest.mark.parametrize("by", ["group", "image"])
def test_a_split_warns_of_nothing(by: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = assign_folds(rows([0] * 10 + [1], range(11)), FoldsConfig.model_validate({"count": 3, "by": by}))
    assert sorted(set(folds.tolist())) == [0, 1, 2]


def test_competitions_keep_patients_together(rendered_wbcbench: Path, rendered_cnmc: Path) -> None:
    for name, root in (("wbcbench", rendered_wbcbench), ("cnmc", rendered_cnmc)):
        labelled = get_competition(name).read(root).labelled
        folds = assign_folds(labelled, FoldsConfig(count=3))
        assert pd.Series(folds).groupby(labelled.group.to_numpy()).nunique().max() == 1


def test_too_few_groups_or_images_are_refused_by_number() -> None:
    frame = rows([0] * 9, list("aaabbbccc"))
    with pytest.raises(UserError, match=r"folds\.count: 4 folds need as many groups, the input has 3"):
        assign_folds(frame, FoldsConfig(count=4))
    with pytest.raises(UserError, match="10 folds need as many images, the input has 9"):
        assign_folds(frame, FoldsConfig(count=10, by="image"))
    with pytest.raises(UserError, match="need as many groups, the input has 0"):
        assign_folds(frame.head(0), FoldsConfig())


def test_classes_that_are_all_too_rare_are_refused() -> None:
    with pytest.raises(UserError, match=r"folds\.count: no class has 5 images"):
        assign_folds(rows([0, 0, 1, 1, 2, 2], range(6)), FoldsConfig(count=5))


def test_a_group_that_crosses_folds_is_refused_unless_images_are_split_by_name() -> None:
    frame = rows([0] * 4, ["a", "a", "b", "c"])
    with pytest.raises(UserError, match=r"group a is in 2 folds \(1 groups cross\).*folds\.by: image"):
        check_folds(frame, np.array([0, 1, 1, 0]), FoldsConfig(count=2))
    check_folds(frame, np.array([0, 1, 1, 0]), FoldsConfig(count=2, by="image"))
    check_folds(frame, np.array([0, 0, 1, 1]), FoldsConfig(count=2))


@pytest.mark.parametrize(
    ("folds", "said"),
    [
        ([0, 0, 1, -1], r"0003\.jpg has no fold of 0\.\.1"),
        ([0, 2, 1, 1], r"0001\.jpg has no fold"),
        ([0, 0, 0, 0], "fold 1 is empty"),
    ],
)
def test_a_row_without_a_fold_and_an_empty_fold_are_refused(folds: list[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_folds(rows([0] * 4, range(4)), np.array(folds), FoldsConfig(count=2))


FRAME = rows(np.arange(40) % 3, [f"{i // 4:03d}" for i in range(40)])


def test_saved_folds_are_taken_up_though_the_seed_would_give_others() -> None:
    folds = assign_folds(FRAME, FoldsConfig(count=3, seed=1))
    saved = FRAME.assign(fold=folds)
    assert take_up_folds(saved, FRAME, FoldsConfig(count=3, seed=2)).tolist() == folds.tolist()


def test_saved_folds_of_other_images_another_number_or_leaking_ones_are_refused() -> None:
    config = FoldsConfig(count=3)
    saved = FRAME.assign(fold=assign_folds(FRAME, config))
    with pytest.raises(UserError, match=r"folds\.csv is of other images"):
        take_up_folds(saved, FRAME.head(39), config)
    for count in (2, 4):
        with pytest.raises(UserError, match=rf"folds\.csv has 3 folds, not {count}"):
            take_up_folds(saved, FRAME, FoldsConfig(count=count))
    with pytest.raises(UserError, match="groups cross"):
        take_up_folds(saved, FRAME.assign(group=[str(i % 10) for i in range(40)]), config)


def expanded(frame: pd.DataFrame, labels: list[int], units: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Adds external rows, each a group of its own, and gives the units of all rows; an external row may share one."""
    external = rows(np.array(labels, dtype=np.int64), [f"x{i}" for i in range(len(labels))]).assign(is_external=True)
    external["image_id"] = [f"x/{i}.jpg" for i in range(len(labels))]
    together = pd.concat([frame, external], ignore_index=True)
    together["group"] = [*frame.group, *units]
    return together, together.group.to_numpy()


@settings(max_examples=50, deadline=None)
@given(labelled_rows(), st.lists(st.integers(0, 4), max_size=40), st.sampled_from(["split", "train"]), st.data())
def test_external_images_never_move_the_competitions_and_follow_their_doubles(
    drawn: tuple[pd.DataFrame, int], labels: list[int], external: str, data: st.DataObject
) -> None:
    frame, count = drawn
    groups = sorted(set(frame.group))
    doubles = data.draw(st.lists(st.sampled_from([None, *groups]), min_size=len(labels), max_size=len(labels)))
    together, units = expanded(frame, labels, [double or f"x{i}" for i, double in enumerate(doubles)])
    config = FoldsConfig.model_validate({"count": count, "external": external})
    alone = assigned(frame, config)
    if alone is None:
        return
    folds = assign_units(together, units, config)
    assert folds[: len(frame)].tolist() == alone.tolist()
    fold_of = dict(zip(frame.group, alone, strict=True))
    for fold, double in zip(folds[len(frame) :], doubles, strict=True):
        if double is not None:
            assert fold == fold_of[double]
        elif external == "train":
            assert fold == IN_EVERY_TRAINING_SET
        else:
            assert 0 <= fold < count


def test_external_images_are_spread_evenly_by_class() -> None:
    together, units = expanded(rows([0] * 30, range(30)), [0] * 31 + [1] * 10 + [2], [f"x{i}" for i in range(42)])
    folds = assign_units(together, units, FoldsConfig(count=3))
    table = pd.crosstab(together.label[30:], folds[30:])
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1


def test_doubles_stay_in_one_fold_of_an_image_level_split() -> None:
    frame = rows([0] * 40, range(40))
    units = np.array([f"u{i // 2}" for i in range(40)])
    folds = assign_units(frame, units, FoldsConfig(count=4, by="image"))
    assert (folds[::2] == folds[1::2]).all()
    assert np.bincount(folds).tolist() == [10] * 4


def test_an_external_row_without_a_fold_is_refused_where_external_images_are_split() -> None:
    together, _ = expanded(rows([0] * 4, range(4)), [0], ["x0"])
    folds = np.array([0, 0, 1, 1, IN_EVERY_TRAINING_SET])
    check_folds(together, folds, FoldsConfig(count=2, external="train"))
    with pytest.raises(UserError, match=r"x/0.jpg has no fold of 0..1"):
        check_folds(together, folds, FoldsConfig(count=2))
    with pytest.raises(UserError, match=r"fold 1 is empty"):  # external images alone make no fold
        check_folds(together, np.array([0, 0, 0, 0, 1]), FoldsConfig(count=2))


def test_copies_count_once_where_classes_are_spread() -> None:
    together, _ = expanded(rows([0] * 30, range(30)), [1, 1, 1], ["x0"] * 3)
    folds = assign_units(together, together.group.to_numpy(), FoldsConfig(count=3))
    assert len(set(folds[30:].tolist())) == 1
    frame = rows([0] * 6, range(6))
    with pytest.raises(UserError, match="no class has 3 images"):
        assign_units(frame.assign(label=[0, 0, 1, 1, 2, 2]), np.array(list("aabbcd")), FoldsConfig(count=3, by="image"))
