"""Trained in one laboratory, scored in others: targets, domains, the last epoch, and networks that meet new light."""

import copy
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from safetensors.torch import load_file
from torch import nn

from leukofold.blending.loading import caveats, load_run
from leukofold.cells import CellTable
from leukofold.config import CONFIG_FOLDER, Config, FoldsConfig, ImageConfig, ModelConfig, Transform, load_config
from leukofold.errors import UserError
from leukofold.experiment import _a_few, experiment_summary, held_out_always, open_experiment, read_competition
from leukofold.exporting import load_folds
from leukofold.folds import HOLDOUT, IN_EVERY_TRAINING_SET, NOWHERE, assign_folds, training_rows
from leukofold.gradcam import grad_cam
from leukofold.images.cache import open_cache
from leukofold.images.preparing import Preparation
from leukofold.metrics import score
from leukofold.models.adaptation import adapt_batch_statistics
from leukofold.models.classifier import Classifier
from leukofold.models.dinobloom import has_seen
from leukofold.models.trained import load_network
from leukofold.prediction import load_members, predict_images
from leukofold.runs import Predictions, RunFolder, chosen_on_scored
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_accelerator, make_inference_accelerator
from leukofold.training.trainer import Trainer

CLASSES = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")


def shifted(laboratories: Path, tmp_path: Path, *changes: str) -> Config:
    """Paper 000's training at a reduced size."""
    return load_config(
        [CONFIG_FOLDER / "raabin/paper000/resnet50.yaml"],
        [
            f"data.root={laboratories / 'input'}",
            f"data.cache={tmp_path / 'cache'}",
            "data.workers=0",
            "image.size=32",
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "training.epochs=3",
            "training.batch_size=8",
            "optimizer.warmup_epochs=0",
            "optimizer.lr=1e-3",
            *changes,
        ],
    )


def trained(config: Config, tmp_path: Path, name: str = "shift") -> RunFolder:
    run = RunFolder(name, tmp_path / "oof")
    train_folds(config, run, config.folds.numbers, resume=False, debug=False)
    return run


# --- who is trained on -----------------------------------------------------------------------------------------


def test_targets_and_domains_are_scored_by_name_and_never_trained_on(laboratories: Path, tmp_path: Path) -> None:
    domain = f"{{elsewhere: {{root: {laboratories / 'elsewhere'}, names: {{Neutrophils: Neutrophil}}}}}}"
    config = shifted(laboratories, tmp_path, f"data.domains={domain}")
    assert held_out_always(config) == ("TestB", "LISC", "BCCD", "elsewhere")
    run = trained(config, tmp_path)
    table = read_competition(config)
    loaded = load_run(run)
    assert set(loaded.oof.split) == {"TestA"}
    assert loaded.holdout is not None
    assert set(loaded.holdout.split) == {"TestB", "LISC", "elsewhere"}
    frame = table.labelled.set_index("image_id")
    assert loaded.holdout.split.tolist() == frame.split[loaded.holdout.image_id].tolist()
    parts = run.fold(0).metrics()["holdout_rows"]["parts"]
    assert {name: scores["images"] for name, scores in parts.items()} == {"TestB": 6, "LISC": 15, "elsewhere": 8}
    for name, scores in parts.items():
        own = loaded.holdout.rows(loaded.holdout.split == name)
        assert own.label is not None
        assert scores == {"images": len(own.label), **score(own.label, own.logits)}
    metadata = run.fold(0).metadata()
    assert metadata["training_images"] == dict.fromkeys(CLASSES, 8)
    assert metadata["holdout"] == {"TestB": 6, "LISC": 15, "elsewhere": 8}
    assert metadata["shared_groups"] == {"TestA": 3}  # smears; targets have their own
    summary = experiment_summary(open_experiment(config, run, progress=False))
    assert "  55 labelled images of 4 groups, 0 to predict" in summary
    assert "  hold-out, the split LISC: 15 images that no fold trains on or is chosen by" in summary
    assert "  hold-out, the split elsewhere: 8 images" in summary
    assert "BCCD" not in summary
    assert "  1 fold by image: TestA  (image-level: patients cross folds" in summary


def test_labels_are_those_of_the_fixed_list_where_a_domain_lacks_classes(laboratories: Path, tmp_path: Path) -> None:
    names = "{Neutrophils: Neutrophil}"
    config = shifted(
        laboratories, tmp_path, f"data.domains={{x: {{root: {laboratories / 'elsewhere'}, names: {names}}}}}"
    )
    labelled = read_competition(config).labelled
    assert sorted(set(labelled.label[labelled.split == "x"])) == [3, 4]
    assert sorted(set(labelled.label[labelled.split == "TestB"])) == [2, 4]


def test_a_domain_with_the_name_of_a_split_is_refused(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, f"data.domains={{BCCD: {{root: {laboratories / 'elsewhere'}}}}}")
    with pytest.raises(UserError, match=r"data\.domains\.BCCD: the competition has a split of that name"):
        read_competition(config)


def test_group_folds_are_of_what_is_no_target(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "folds={by: group, splits: [], count: 2}")
    labelled = read_competition(config).labelled
    folds = assign_folds(labelled, labelled.group.to_numpy(), config.folds, held_out_always(config))
    targets = labelled.split.isin(["TestB", "LISC"]).to_numpy()
    assert set(folds[targets]) == {HOLDOUT}
    assert set(folds[~targets]) == {0, 1}  # Train and TestA share smears, and are split together
    assert pd.Series(folds[~targets]).groupby(labelled.group[~targets].to_numpy()).nunique().max() == 1


def rows(splits: list[str], groups: list[str]) -> pd.DataFrame:
    ids = [f"{i}.jpg" for i in range(len(splits))]
    labels = np.arange(len(splits)) % 2
    return pd.DataFrame({"image_id": ids, "label": labels, "group": groups, "is_external": False, "split": splits})


def test_splits_by_image_train_on_shared_smears_but_on_no_copy() -> None:
    frame = rows(["Train"] * 6 + ["TestA"] * 2 + ["LISC"] * 2, ["a", "a", "a", "b", "b", "b", "a", "b", "c", "c"])
    units = np.array(["0", "1", "2", "3", "4", "5", "0", "7", "8", "4"])  # 0 = a copy of 6, 4 of 9
    image, split = FoldsConfig(by="image", splits=("TestA",)), FoldsConfig(by="split", splits=("TestA",))
    folds = assign_folds(frame, units, image, ["LISC"])
    free = IN_EVERY_TRAINING_SET
    assert folds.tolist() == [NOWHERE, free, free, free, NOWHERE, free, 0, 0, HOLDOUT, HOLDOUT]
    assert training_rows(frame, folds, image, 0).tolist() == [False, True, True, True, False, True] + [False] * 4
    folds = assign_folds(frame, frame.group.to_numpy(), split, ["LISC"])
    assert not training_rows(frame, folds, split, 0).any()  # patients stay on one side


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({"by": "group", "splits": ["a"]}, "splits: goes with by: split or image"),
        ({"by": "image", "splits": ["a", "a"]}, "each once"),
        ({"by": "image", "splits": ["a"], "holdout": ["b", "a"]}, "holdout: a is a fold already"),
    ],
)
def test_splits_that_make_no_sense_are_refused(folds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FoldsConfig.model_validate(folds)


def test_several_splits_are_held_out_by_name() -> None:
    frame = rows(["a", "a", "b", "b", "c", "c", "d", "d"], [str(k) for k in range(8)])
    config = FoldsConfig(by="split", splits=("a",), holdout=("b", "c"))
    folds = assign_folds(frame, frame.group.to_numpy(), config)
    assert folds.tolist() == [0, 0, HOLDOUT, HOLDOUT, HOLDOUT, HOLDOUT, -1, -1]


def test_predictions_of_an_older_file_have_no_splits(tmp_path: Path) -> None:
    found = Predictions(
        np.array(["a", "b"]), np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), ("x", "y"),
        np.array(["g", "h"]), np.zeros(2, bool), np.array([0, 1]), np.array(["TestA", "LISC"]),
    )  # fmt: skip
    found.save(tmp_path / "new.npz")
    assert Predictions.load(tmp_path / "new.npz").rows(np.array([1])).split.tolist() == ["LISC"]
    with np.load(tmp_path / "new.npz") as arrays:
        np.savez(tmp_path / "old.npz", **{name: arrays[name] for name in arrays if name != "split"})
    assert Predictions.load(tmp_path / "old.npz").split.tolist() == ["", ""]


def test_a_share_and_targets_by_name_are_held_out_together(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "folds={by: group, splits: [], count: 2, holdout: [TestB, LISC]}")
    labelled = read_competition(config).labelled
    folds = assign_folds(labelled, labelled.group.to_numpy(), config.folds, held_out_always(config))
    assert set(folds[labelled.split.isin(["TestB", "LISC"])]) == {HOLDOUT}


def test_nothing_left_to_train_on_is_said(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(
        laboratories, tmp_path, "folds.by=split"
    )  # all smears of Train are in TestA or the other way round
    labelled = read_competition(config).labelled
    assert set(labelled.group[labelled.split == "Train"]) > set(labelled.group[labelled.split == "TestA"])
    only = laboratories.parent / "shared"
    for part in ("Train", "TestA"):
        copied = only / "RaabinWBC" / part / "Monocyte" / f"1_{part}.png"
        copied.parent.mkdir(parents=True)
        shutil.copy(next((laboratories / "input/RaabinWBC" / part / "Monocyte").iterdir()), copied)
    with pytest.raises(UserError, match=r"fold 0: nothing is left to train on.*folds\.by: image trains on them"):
        trained(shifted(laboratories, tmp_path, "folds.by=split", f"data.root={only}"), tmp_path)


def test_a_crop_of_no_part_is_refused(laboratories: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image\.crops: there is no split or target domain 'LICS'; known are Train"):
        trained(shifted(laboratories, tmp_path, "image.crops={LICS: 20}"), tmp_path)


def test_a_few_batches_hold_every_laboratory(laboratories: Path, tmp_path: Path) -> None:
    run = RunFolder("debug", tmp_path / "oof")
    config = shifted(laboratories, tmp_path)
    train_folds(config, run, [0], resume=False, debug=True)
    assert run.fold(0).metadata()["holdout"] == {"TestB": 6, "LISC": 15}
    folds = np.full(120, HOLDOUT)
    frame = pd.DataFrame({"is_external": False, "label": 0, "split": ["LISC"] * 60 + ["BCCD"] * 60})
    assert len(_a_few(frame, folds)) == 64


# --- the last epoch --------------------------------------------------------------------------------------------


def test_the_last_epoch_is_kept_and_nothing_is_chosen(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "training.patience=1", "training.epochs=4", "optimizer.lr=1e-9")
    run = RunFolder("last", tmp_path / "oof")
    trainer = Trainer(open_experiment(config, run, progress=False), 0, make_accelerator(config.training, run))
    trainer.fit()
    assert trainer.progress.epoch == trainer.progress.best_epoch == 4  # nothing gets better here, and yet
    kept, live = load_file(run.fold(0).weights), trainer.network.state_dict()
    assert all(torch.equal(kept[name], live[name]) for name in live)
    stopped = shifted(
        laboratories, tmp_path, "training.patience=1", "training.epochs=4", "optimizer.lr=1e-9", "training.keep=best"
    )
    trainer = Trainer(open_experiment(stopped, run, progress=False), 0, make_accelerator(stopped.training, run))
    trainer.fit()
    assert trainer.progress.epoch < 4


@pytest.mark.parametrize(("keep", "optimistic"), [("best", True), ("last", False)])
def test_only_a_chosen_epoch_is_called_optimistic(
    keep: str, optimistic: bool, laboratories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(shifted(laboratories, tmp_path, f"training.keep={keep}"), tmp_path)
    printed = capsys.readouterr().out
    assert f"({keep} epoch" in printed
    assert ("optimistic: the epoch was chosen on these images" in printed) is optimistic
    found = " ".join(caveats([load_run(run)]))
    assert ("OPTIMISTIC: the epochs were chosen on TestA" in found) is optimistic
    assert "image-level folds: patients cross them" in found
    assert "  hold-out LISC: accuracy" in printed


def test_a_machine_chooses_no_epoch_and_a_plateau_is_no_last_one(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "training.keep=best", "svm={}")
    assert not chosen_on_scored({"config": config.resolved()})
    assert chosen_on_scored({"config": shifted(laboratories, tmp_path, "training.keep=best").resolved()})
    with pytest.raises(UserError, match=r"keep: last chooses nothing, but optimizer\.schedule: plateau follows"):
        shifted(laboratories, tmp_path, "optimizer.schedule=plateau")


def test_a_network_that_has_seen_these_cells_says_so(laboratories: Path, tmp_path: Path) -> None:
    assert has_seen("dinobloom_small", "raabin")
    assert not has_seen("dinobloom_small", "wbcbench")
    assert not has_seen("resnet50", "raabin")


# --- batch statistics of the images that are scored ------------------------------------------------------------


def test_every_part_is_scored_with_its_own_batch_statistics(laboratories: Path, tmp_path: Path) -> None:
    plain = trained(shifted(laboratories, tmp_path), tmp_path, "plain")
    config = shifted(laboratories, tmp_path, "inference.batch_statistics=domain", "inference.statistics_prior=4")
    adapted = trained(config, tmp_path, "adapted")
    for name, value in load_file(plain.fold(0).weights).items():  # the training is the same, and so is what it keeps
        assert torch.equal(load_file(adapted.fold(0).weights)[name], value)
    experiment = open_experiment(config, adapted, progress=False)
    network = load_network(config, adapted.fold(0), 5, torch.device("cpu"))
    for kind, part in (("oof", "TestA"), ("holdout", "LISC"), ("holdout", "TestB")):
        found = adapted.fold(0).predictions(kind)
        own = found.rows(found.split == part)
        pixels = experiment.images.channels(experiment.images.rows(own.image_id.tolist()))
        images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        copied = copy.deepcopy(network)
        adapt_batch_statistics(copied, [images], prior=4)
        with torch.inference_mode():
            assert own.logits == pytest.approx(copied(images).numpy(), abs=1e-4)
        before = plain.fold(0).predictions(kind)
        assert np.abs(own.logits - before.rows(before.split == part).logits).max() > 1e-2
    # new images are a laboratory of their own
    paths = sorted(path.as_posix() for path in (laboratories / "input/LISCCropped").rglob("*.png"))
    members = load_members(["adapted"], torch.device("cpu"), tmp_path / "oof")
    logits = predict_images(members, pd.DataFrame({"path": paths}), make_inference_accelerator(None), 64, 0)
    holdout = adapted.fold(0).predictions("holdout")
    by_path = experiment.labelled.set_index("path").image_id
    order = [holdout.image_id.tolist().index(by_path[path]) for path in paths]
    assert logits == pytest.approx(holdout.logits[order], abs=1e-4)
    with pytest.raises(UserError, match=r"one exported network cannot know; use scripts/predict\.py"):
        load_folds(adapted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.normalisation=group"], "group normalisation has none"),
        (["model.frozen=[backbone]", "training.cached_views=1"], "needs a network that sees the images"),
        (["svm={}"], "needs a network that sees the images"),
    ],
)
def test_statistics_that_are_not_there_are_refused(
    changes: list[str], message: str, laboratories: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        shifted(laboratories, tmp_path, "inference.batch_statistics=domain", *changes)


# --- networks --------------------------------------------------------------------------------------------------


def test_a_network_without_statistics_is_refused_before_it_is_trained(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "inference.batch_statistics=domain", "model.backbone=test_vit")
    with pytest.raises(UserError, match=r"inference\.batch_statistics: the network has no batch normalisation"):
        trained(config, tmp_path)
    assert not RunFolder("shift", tmp_path / "oof").fold(0).weights.exists()


def classifier(**settings: Any) -> Classifier:
    model = ModelConfig.model_validate({"backbone": "test_resnet", "pretrained": False, **settings})
    return Classifier(model, ImageConfig(size=32), classes=5)


def test_group_normalisation_is_trained_kept_and_loaded(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "model.normalisation=group", "model.norm_groups=8")
    run = trained(config, tmp_path)
    assert not any("running_mean" in name for name in load_file(run.fold(0).weights))
    network = load_network(config, run.fold(0), 5, torch.device("cpu"))
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert {norm.num_groups for norm in norms} == {8}
    experiment = open_experiment(config, run, progress=False)
    oof = run.fold(0).predictions("oof")
    pixels = experiment.images.channels(experiment.images.rows(oof.image_id.tolist()))
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
    assert oof.logits == pytest.approx(logits.numpy(), abs=1e-5)


def test_frozen_batch_normalisation_neither_trains_nor_moves(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "model.normalisation=frozen")
    run = RunFolder("frozen", tmp_path / "oof")
    trainer = Trainer(open_experiment(config, run, progress=False), 0, make_accelerator(config.training, run))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.fit()
    norms = {
        f"{name}.{part}"
        for name, module in trainer.network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    still = {name for name, value in trainer.network.state_dict().items() if torch.equal(value, before[name])}
    assert still == norms | {"mean", "std"}
    loaded = load_network(config, run.fold(0), 5, torch.device("cpu"))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_centre_is_what_a_network_with_a_smaller_input_sees() -> None:
    torch.manual_seed(0)
    model = ModelConfig(backbone="test_resnet", pretrained=False)
    crop = (Transform(name="RandomCrop"),)
    network = Classifier(model, ImageConfig(size=40, input_size=32, augment=crop), classes=3).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(images), network(images[..., 4:36, 4:36]))
    with pytest.raises(ValueError, match="input_size: 64 is more than size 40"):
        ImageConfig(size=40, input_size=64)
    with pytest.raises(
        ValueError, match=r"input_size: training has to crop to 32 too; add RandomCrop to image\.augment"
    ):
        ImageConfig(size=40, input_size=32)
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    heat = grad_cam(network, pixels, np.array([0, 1]))
    assert heat.shape == (2, 40, 40)
    plain = Classifier(model, ImageConfig(size=32), classes=3).eval()
    plain.load_state_dict(network.state_dict())
    assert heat[:, 4:36, 4:36] == pytest.approx(grad_cam(plain, pixels[:, 4:36, 4:36], np.array([0, 1])))
    assert not heat[:, :4].any()
    assert not heat[:, :, 36:].any()


def test_the_code_s_images_can_be_laid_over_the_paper_s(laboratories: Path, tmp_path: Path) -> None:
    files = [CONFIG_FOLDER / "raabin/paper000" / name for name in ("resnet50.yaml", "as_code.yaml")]
    config = load_config(files)
    assert (config.image.size, config.image.side) == (256, 224)
    changes = ["image.size=40", "image.input_size=32", "image.augment=[{name: RandomCrop, height: 32, width: 32}]"]
    run = trained(shifted(laboratories, tmp_path, *changes), tmp_path)
    assert run.fold(0).complete


def test_dropout_reaches_the_backbone() -> None:
    network = classifier(backbone="vgg11", backbone_dropout=0.5)
    assert network.backbone.pre_logits.drop.p == 0.5
    assert classifier(backbone="vgg11").backbone.pre_logits.drop.p == 0.0


def test_squeezenet_has_torchvision_s_features_and_takes_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = torchvision.models.squeezenet1_1(weights=None).eval()
    torch.save(original.state_dict(), tmp_path / "squeezenet.pth")
    network = classifier(backbone="squeezenet1_1", pretrained=tmp_path / "squeezenet.pth").eval()
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        expected = original.features(network.normalise(images)).mean(dim=(2, 3))
        assert torch.allclose(network.embed(images), expected, atol=1e-6)
    assert network.embed(images).shape == (2, 512)


def test_a_network_without_batch_normalisation_has_none_to_replace() -> None:
    with pytest.raises(UserError, match=r"model\.normalisation: the backbone has no batch normalisation"):
        classifier(backbone="squeezenet1_1", normalisation="group")


# --- one scale -------------------------------------------------------------------------------------------------


def test_each_laboratory_has_its_own_crop(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "image.crops={Train: 24, LISC: null}", "image.crop=40")
    table = read_competition(config)
    prepare = Preparation(config.image, lambda image: image)
    cache = open_cache(table.labelled, prepare, "raabin", tmp_path / "cache", progress=False)
    for split, side in (("Train", 24), ("LISC", 48), ("TestA", 40)):
        row = table.labelled[table.labelled.split == split].iloc[0]
        image = cv2.imread(row.path, cv2.IMREAD_COLOR_RGB)
        assert image is not None
        start = (48 - side) // 2
        centre = image[start : start + side, start : start + side]
        expected = cv2.resize(centre, (32, 32), interpolation=cv2.INTER_AREA)
        assert np.array_equal(cache.pixels[cache.rows([row.image_id])[0]], expected)
    renamed = CellTable(table.frame.assign(split=table.frame.split.replace("Train", "TestA")), table.class_names)
    other = open_cache(renamed.labelled, prepare, "raabin", tmp_path / "cache", progress=False)
    assert other.folder != cache.folder


def test_new_images_get_the_crop_that_is_asked_for(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "image.crops={LISC: 24}")
    run = trained(config, tmp_path)
    experiment = open_experiment(config, run, progress=False)
    rows = experiment.labelled[experiment.labelled.split == "LISC"]
    holdout = run.fold(0).predictions("holdout")
    expected = holdout.rows(holdout.split == "LISC")
    members = load_members(["shift"], torch.device("cpu"), tmp_path / "oof")
    accelerator = make_inference_accelerator(None)
    found = predict_images(members, rows[["path"]], accelerator, 64, 0, split="LISC")
    order = [rows.image_id.tolist().index(name) for name in expected.image_id]
    assert found[order] == pytest.approx(expected.logits, abs=1e-4)
    plain = predict_images(members, rows[["path"]], accelerator, 64, 0)
    assert np.abs(plain[order] - expected.logits).max() > 1e-2
    with pytest.raises(UserError, match=r"--crop-of TestA: no run has a crop of that name .*; there are LISC"):
        predict_images(members, rows[["path"]], accelerator, 64, 0, split="TestA")


def test_stain_normalisation_is_part_of_what_is_cached(laboratories: Path, tmp_path: Path) -> None:
    config = shifted(laboratories, tmp_path, "image.stain=light")
    plain = shifted(laboratories, tmp_path)
    frame = read_competition(config).labelled
    caches = [
        open_cache(frame, Preparation(each.image, lambda image: image), "raabin", tmp_path / "cache", progress=False)
        for each in (config, plain)
    ]
    assert caches[0].folder != caches[1].folder
    dark = frame[frame.split == "LISC"].image_id.tolist()
    brightness = [np.median(cache.pixels[cache.rows(dark)]) for cache in caches]
    assert brightness[0] > 200 > 130 > brightness[1]
