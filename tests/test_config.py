"""Configuration: layers and their order, overrides, refusals that name file and key, digest and run name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leukofold.config import CONFIG_FOLDER, Config, DenoiseConfig, load_config, run_name
from leukofold.errors import UserError
from leukofold.images.denoising import Denoising


def write(path: Path, **layer: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(layer), encoding="utf-8")
    return path


def test_no_file_and_an_empty_file_give_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.touch()
    assert load_config([]) == load_config([empty]) == Config()


def test_a_chain_of_extends_is_laid_down_from_the_oldest_to_the_youngest(tmp_path: Path) -> None:
    write(tmp_path / "base" / "grand.yaml", training={"epochs": 1, "patience": 2}, folds={"count": 7})
    write(tmp_path / "base" / "parent.yaml", extends="grand.yaml", training={"epochs": 5, "batch_size": 6})
    child = write(tmp_path / "child.yaml", extends="base/parent.yaml", training={"batch_size": 9})
    config = load_config([child])
    assert (config.training.epochs, config.training.patience, config.training.batch_size) == (5, 2, 9)
    assert config.folds.count == 7


def test_of_several_parents_and_of_several_files_the_later_one_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", training={"epochs": 1, "patience": 1})
    second = write(tmp_path / "b.yaml", training={"epochs": 2})
    both = write(tmp_path / "c.yaml", extends=["a.yaml", "b.yaml"])
    for paths in ([first, second], [both]):
        training = load_config(paths).training
        assert (training.epochs, training.patience) == (2, 1)
    assert load_config([second, first]).training.epochs == 1


def test_lists_are_replaced_not_appended(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", model={"hidden": [1, 2, 3]}, image={"augment": [{"name": "D4", "p": 0.25}]})
    child = write(tmp_path / "b.yaml", extends="a.yaml", model={"hidden": [4]})
    config = load_config([child])
    assert config.model.hidden == (4,)
    assert [(step.name, step.model_extra) for step in config.image.augment] == [("D4", {"p": 0.25})]


def test_two_children_of_one_parent_are_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "top.yaml", training={"epochs": 4})
    write(tmp_path / "a.yaml", extends="top.yaml")
    write(tmp_path / "b.yaml", extends="top.yaml")
    assert load_config([write(tmp_path / "c.yaml", extends=["a.yaml", "b.yaml"])]).training.epochs == 4


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_circle_of_extends_is_refused(tmp_path: Path, length: int) -> None:
    for i in range(length):
        write(tmp_path / f"{i}.yaml", extends=f"{(i + 1) % length}.yaml")
    with pytest.raises(UserError, match=r"0\.yaml.*extends.*circle"):
        load_config([tmp_path / "0.yaml"])


@pytest.mark.parametrize("value", ["3", "null", "[3]"])
def test_extends_must_name_files(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"extends: {value}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.yaml.*extends"):
        load_config([path])


def test_overrides_win_over_files_and_the_last_one_over_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", training={"epochs": 3, "patience": 4})
    training = load_config([path], ["training.epochs=5", "training.epochs=6"]).training
    assert (training.epochs, training.patience) == (6, 4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=3", 3),
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=1.5E-3", 1.5e-3),
        ("optimizer.clip_norm=null", None),
        ("training.compile=true", True),
        ("model.pretrained=false", False),
        ("model.pretrained=weights/dinobloom.pth", Path("weights/dinobloom.pth")),
        ("model.hidden=[64, 32]", (64, 32)),
        ("model.backbone=resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("data.root=/data/wbc=2026", Path("/data/wbc=2026")),
        ("data.render.images=100", 100),
    ],
)
def test_an_override_takes_the_type_of_its_key(override: str, expected: object) -> None:
    value: Any = load_config([], [override])
    for part in override.partition("=")[0].split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


@given(st.floats(min_value=1e-12, max_value=1e3))
def test_any_learning_rate_survives_the_command_line(lr: float) -> None:
    assert load_config([], [f"optimizer.lr={lr!r}"]).optimizer.lr == lr
    assert load_config([], [f"optimizer.lr={lr:.3e}"]).optimizer.lr == float(f"{lr:.3e}")


def test_exponents_without_a_point_are_numbers_in_files_too(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("optimizer: {lr: 1e-4}\n", encoding="utf-8")
    assert load_config([path]).optimizer.lr == 1e-4


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", ".=3", "training.epochs=["])
def test_a_malformed_override_is_refused_by_its_own_words(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], [override])
    assert override in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "key", "hint"),
    [
        ({"trainning": {"epochs": 3}}, "trainning", "did you mean 'training'?"),
        ({"optimizer": {"lrr": 1}}, "optimizer.lrr", "did you mean 'lr'?"),
        ({"data": {"render": {"test_image": 1}}}, "data.render.test_image", "did you mean 'test_images'?"),
        ({"zzzz": 1}, "zzzz", "known keys here: data, folds"),
        ({"loss": {"zzzz": 1}}, "loss.zzzz", "known keys here: kind, gamma"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    tmp_path: Path, layer: dict[str, Any], key: str, hint: str
) -> None:
    path = write(tmp_path / "a.yaml", **layer)
    with pytest.raises(UserError) as caught:
        load_config([path])
    message = str(caught.value)
    assert message.startswith(f"{path}: unknown key '{key}'")
    assert hint in message


@pytest.mark.parametrize(
    ("layer", "key", "value"),
    [
        ({"training": {"epochs": "three"}}, "training.epochs", "three"),
        ({"training": {"epochs": 0}}, "training.epochs", "0"),
        ({"training": {"epochs": 2.5}}, "training.epochs", "2.5"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr", "-1"),
        ({"folds": {"by": "patient"}}, "folds.by", "patient"),
        ({"model": {"pretrained": 3}}, "model.pretrained", "3"),
        ({"image": {"mean": ["a", 0.5, 0.5]}}, "image.mean", "a"),
        ({"data": {"render": {"images": "many"}}}, "data.render.images", "many"),
        ({"loss": 3}, "loss", "3"),
        ({"data": None}, "data", "None"),
    ],
)
def test_a_value_that_does_not_fit_names_file_key_and_value(
    tmp_path: Path, layer: dict[str, Any], key: str, value: str
) -> None:
    path = write(tmp_path / "a.yaml", **layer)
    with pytest.raises(UserError) as caught:
        load_config([path])
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ")
    assert value in message


def test_of_several_files_the_one_with_the_fault_is_named(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.yaml"), write(tmp_path / "bad.yaml", training={"epochs": -1})
    with pytest.raises(UserError, match=r"bad\.yaml: training\.epochs"):
        load_config([bad, good])
    with pytest.raises(UserError, match=r"--set training\.epochs=-2: training\.epochs"):
        load_config([good], ["training.epochs=-2"])


def test_a_fault_in_an_extended_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", training={"epochs": -1})
    child = write(tmp_path / "child.yaml", extends="parent.yaml", training={"patience": 3})
    with pytest.raises(UserError, match=r"parent\.yaml: training\.epochs"):
        load_config([child])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n- b\n", "mapping"),
        (b"just words", "mapping"),
        (b"a: b: c\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_config([path])
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_named_whether_given_or_extended(tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", extends="nowhere.yaml")
    for path in (tmp_path / "nowhere.yaml", child, tmp_path):
        with pytest.raises(UserError, match="no such configuration file"):
            load_config([path])


def test_the_resolved_configuration_gives_itself_again(tmp_path: Path) -> None:
    config = load_config([], ["optimizer.lr=3e-4", "data.render.images=99", "model.pretrained=a/b.pth"])
    again = load_config([write(tmp_path / "resolved.yaml", **config.resolved())])
    assert again == config
    assert again.digest() == config.digest()


@pytest.mark.parametrize(
    "override", ["data.root=elsewhere", "data.cache=elsewhere", "data.workers=3", "training.trackers=[tensorboard]"]
)
def test_the_digest_ignores_what_cannot_change_a_result(override: str) -> None:
    assert load_config([], [override]).digest() == Config().digest()


def test_the_digest_changes_with_every_other_key() -> None:
    overrides = [
        "data.competition=cnmc", "data.render.seed=1", "folds.count=4", "folds.by=image", "folds.seed=1",
        "image.size=96", "image.augment=[]", "model.backbone=resnet18", "model.dropout=0.2", "sampler.kind=uniform",
        "loss.gamma=1",
        "optimizer.lr=1e-4", "training.seed=1", "training.batch_size=8", "inference.tta=none",
    ]  # fmt: skip
    digests = {Config().digest(), *(load_config([], [override]).digest() for override in overrides)}
    assert len(digests) == len(overrides) + 1


def test_a_run_is_named_after_its_configuration(tmp_path: Path) -> None:
    assert run_name([CONFIG_FOLDER / "demo.yaml"]) == "demo"
    assert run_name([CONFIG_FOLDER / "wbcbench" / "swinv2_tiny.yaml"]) == "wbcbench/swinv2_tiny"
    assert run_name([CONFIG_FOLDER / "demo.yaml", tmp_path / "fast.yaml"]) == "demo+fast"


def test_the_configuration_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Config().training, "epochs", 3)  # noqa: B010


def test_external_sets_are_sections_under_names_and_false_drops_one(tmp_path: Path) -> None:
    write(tmp_path / "both.yaml", data={"external": {"acevedo": {"classes": ["BA"]}, "cellwiki": {}}})
    child = write(tmp_path / "one.yaml", extends="both.yaml", data={"external": {"cellwiki": False}})
    assert list(load_config([child]).data.external) == ["acevedo"]
    assert load_config([child]).data.external["acevedo"].classes == ("BA",)
    bare = write(tmp_path / "bare.yaml", data={"external": {"acevedo": None}})  # acevedo: and nothing after it
    assert load_config([bare]).data.external["acevedo"].classes is None
    with pytest.raises(UserError, match=r"unknown key 'data.external.acevedo.clases'; did you mean 'classes'\?"):
        load_config([child], ["data.external.acevedo.clases=[BA]"])


def test_where_external_files_lie_changes_no_result_but_what_is_taken_does() -> None:
    plain = load_config([], ["data.external.acevedo={}"])
    assert load_config([], ["data.external.acevedo.root=elsewhere"]).digest() == plain.digest()
    assert load_config([], ["data.external.acevedo.classes=[BA]"]).digest() != plain.digest()
    assert load_config([]).digest() != plain.digest()


def test_cutmix_and_mixup_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"--set mixing.mixup=.6: mixing: cutmix and mixup exclude each other"):
        load_config([], ["mixing.cutmix=.6", "mixing.mixup=.6"])


def test_the_defaults_of_denoising_are_the_measured_ones() -> None:
    assert DenoiseConfig().model_dump() == vars(Denoising())


def test_a_batch_that_cannot_be_computed_in_parts_is_refused() -> None:
    with pytest.raises(UserError, match=r"training: batch_size 15 cannot be divided into accumulate: 2 parts"):
        load_config([], ["training.batch_size=15", "training.accumulate=2"])
