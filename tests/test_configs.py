"""The configurations that come with the project: they load, and paper 001's are the paper's, and run end to end."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from leukofold.augment import Augmentation
from leukofold.blending.combining import blend_runs
from leukofold.blending.loading import load_run
from leukofold.competitions import get_competition
from leukofold.config import CONFIG_FOLDER, Config, load_config
from leukofold.external import get_source
from leukofold.gallery import augmentation_sheet
from leukofold.inference import tta_views
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds

RUNS = sorted(path for path in CONFIG_FOLDER.rglob("*.yaml") if "studies" not in path.parts)
PAPER001 = CONFIG_FOLDER / "wbcbench" / "paper001"
NETWORKS = ("swinv2_tiny", "convnextv2_tiny", "dinobloom_small")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.relative_to(CONFIG_FOLDER).as_posix())
def test_every_configuration_loads_and_names_what_exists(path: Path) -> None:
    config = load_config([path])
    competition = get_competition(config.data.competition)
    Augmentation(config.image.augment)
    for name, source in config.data.external.items():
        labels = get_source(name).labels
        assert all(labels[given] in competition.class_names for given in source.classes or ())


@pytest.mark.parametrize("name", NETWORKS)
def test_paper001_recipe_is_the_papers(name: str) -> None:
    config = load_config([PAPER001 / f"{name}.yaml"])
    assert config.folds.count == 3
    assert (config.model.head, len(config.model.hidden), config.model.dropout) == ("mlp", 4, 0.1)
    assert (config.sampler.kind, config.sampler.beta) == ("effective_number", 0.9999)
    assert (config.loss.kind, config.loss.alpha, config.loss.gamma) == ("focal", 0.25, 2.0)
    assert (config.loss.weights, config.loss.label_smoothing) == ("none", 0.0)
    assert (config.mixing.cutmix, config.mixing.mixup) == (0.15, 0.15)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.warmup_epochs) == ("adamw", (0.9, 0.999), 0)
    assert (optimizer.lr, optimizer.min_lr) == (5e-4, 5e-6)
    training = config.training
    assert (training.batch_size, training.patience, training.ema_decay) == (32, 10, 0.999)
    assert config.image.denoise is not None
    named = {step.name for step in config.image.augment}
    assert named == {
        "HorizontalFlip", "VerticalFlip", "Rotate", "GaussNoise", "GaussianBlur", "MotionBlur",
        "RandomBrightnessContrast",
    }  # fmt: skip
    assert len(tta_views(config.inference)) == 16


def test_paper001_expansion_takes_the_papers_classes_and_numbers() -> None:
    config = load_config([PAPER001 / "swinv2_tiny.yaml", PAPER001 / "expanded_as_published.yaml"])
    taken = {
        name: sum(get_source(name).published_counts[given] for given in source.classes or ())
        for name, source in config.data.external.items()
    }
    assert taken == {"acevedo": 10132, "cellwiki": 18, "blood8": 2895}
    assert sum(taken.values()) == 13045  # the paper's total; its 10,312 for Acevedo is a slip
    assert list(load_config([PAPER001 / "expanded.yaml"]).data.external) == ["acevedo", "cellwiki"]


def test_the_picture_of_the_augmentations_has_a_row_for_each() -> None:
    config = load_config([PAPER001 / "base.yaml"])
    picture = augmentation_sheet(config)
    rows = 1 + len(config.image.augment) + 2 + 1
    assert picture.shape == (rows * 147, 180 + 8 * 147, 3)
    cells = picture.reshape(rows, 147, -1, 3)[:, :145, 180:]
    assert all((row != cells[0]).mean() > 0.2 for row in cells[1:])  # every augmentation does something


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> list[Config]:
    """Paper 001's three configurations with all expansion, on rendered images, at a fraction of the size."""
    folder = tmp_path_factory.mktemp("paper001")
    render("wbcbench", folder / "wbcbench", RenderSpec(images=60, test_images=9, patients=12), 1, progress=False)
    overrides = [f"data.root={folder / 'wbcbench'}", f"data.cache={folder / 'cache'}", "data.workers=0"]
    for name, images in (("acevedo", 40), ("blood8", 40), ("cellwiki", 4)):
        render(name, folder / name, RenderSpec(images=images, seed=3), 1, progress=False)
        overrides += [f"data.external.{name}.root={folder / name}", f"data.external.{name}.partial=true"]
    overrides += ["model.pretrained=false", "image.size=32", "training.epochs=1", "inference.angles=2"]
    small = {"swinv2_tiny": "test_vit2", "convnextv2_tiny": "test_convnext2", "dinobloom_small": "test_vit"}
    return [
        load_config(
            [PAPER001 / f"{name}.yaml", PAPER001 / "expanded_as_published.yaml"],
            [*overrides, f"model.backbone={small[name]}"],
        )
        for name in NETWORKS
    ]


def test_paper001_nine_models_train_and_blend(reduced: list[Config], tmp_path: Path) -> None:
    folders = [RunFolder(name, tmp_path / "oof") for name in NETWORKS]
    for folder, config in zip(folders, reduced, strict=True):
        train_folds(config, folder, [0, 1, 2], resume=False, debug=False)
    blend = blend_runs([load_run(folder) for folder in folders])
    nine = [folder.fold(k).predictions("test").logits for folder in folders for k in range(3)]
    assert blend.test.logits == pytest.approx(np.mean(nine, axis=0), abs=1e-5)
    own = ~blend.oof.is_external
    assert own.sum() == 60
    assert {image_id.split("/")[0] for image_id in blend.oof.image_id[~own]} == {"acevedo", "blood8", "cellwiki"}
    assert blend.oof.label is not None
    labels, predictions = blend.oof.label[own], blend.oof.logits[own].argmax(axis=1)
    expected = f1_score(labels, predictions, labels=range(13), average="macro", zero_division=0)
    assert blend.scores()["macro_f1"] == pytest.approx(expected)
