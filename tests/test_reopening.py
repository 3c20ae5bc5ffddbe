"""A finished run meets its data again, or is told why it cannot; its embeddings are the backbone's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from leukofold.blending.loading import LoadedRun, load_run
from leukofold.config import Config
from leukofold.embeddings import run_embeddings
from leukofold.errors import UserError
from leukofold.models.classifier import Classifier
from leukofold.reopening import reopen
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds


@pytest.fixture(scope="module")
def finished(rendered_wbcbench: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run of two folds, whose input is a copy that tests may change and put back."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(rendered_wbcbench, folder / "wbcbench")
    config = Config.model_validate(
        {
            "data": {"root": folder / "wbcbench", "cache": folder / "cache", "workers": 0},
            "folds": {"count": 2},
            "image": {"size": 32},
            "model": {"backbone": "test_resnet", "pretrained": False},
            "training": {"epochs": 1, "batch_size": 16, "ema_decay": 0},
        }
    )
    run = RunFolder("run", folder / "oof")
    train_folds(config, run, [0, 1], resume=False, debug=False)
    return load_run(run)


def root_of(run: LoadedRun) -> Path:
    """The run's input."""
    return Path(run.metadata["config"]["data"]["root"])


def test_cells_stand_in_the_order_of_the_logits(finished: LoadedRun) -> None:
    reopened = reopen(finished)
    assert reopened.cells.image_id.tolist() == finished.oof.image_id.tolist()
    assert finished.oof.label is not None
    assert reopened.cells.label.tolist() == finished.oof.label.tolist()
    assert [Path(path).name for path in reopened.cells.path] == reopened.cells.image_id.tolist()


def test_the_images_are_found_again_in_trainings_own_cache(finished: LoadedRun) -> None:
    images = Path(finished.metadata["config"]["data"]["cache"]) / "images"
    before = sorted(path.name for path in images.iterdir())
    cache = reopen(finished).images()
    assert sorted(path.name for path in images.iterdir()) == before
    assert cache.of_cell(0).shape[1:] == (32, 32, 3)


def test_embeddings_are_the_features_of_the_network_that_has_not_seen_the_image(finished: LoadedRun) -> None:
    reopened = reopen(finished)
    vectors = run_embeddings(reopened)
    cache = reopened.images()
    for row in (0, 7, 40):
        network = reopened.network(int(finished.folds[row]), torch.device("cpu"))
        assert isinstance(network, Classifier)
        pixels = cache.channels(cache.rows([str(finished.oof.image_id[row])]))
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        with torch.inference_mode():
            expected = network.backbone(network.normalise(images))
            logits = network.head(torch.from_numpy(vectors[row : row + 1]))
        np.testing.assert_allclose(vectors[row], expected[0].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits[0].numpy(), finished.oof.single_view[row], rtol=1e-3, atol=1e-4)


def test_embeddings_are_kept_and_read_again_and_a_damaged_file_is_replaced(finished: LoadedRun) -> None:
    reopened = reopen(finished)
    vectors = run_embeddings(reopened)
    path = finished.folder.fold(0).embeddings
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    np.testing.assert_array_equal(run_embeddings(reopened), vectors)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["image_id"].tolist() == finished.oof.image_id[finished.folds == 0].tolist()


def test_an_input_that_has_changed_is_refused(finished: LoadedRun) -> None:
    listing = root_of(finished) / "phase2_train.csv"
    text = listing.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    image_id, label = lines[1].split(",")[:2]
    try:
        listing.write_text("".join([lines[0], *lines[2:]]), encoding="utf-8")
        with pytest.raises(UserError, match=rf"lacks 1 images that the run was trained on, {image_id} first"):
            reopen(finished)
        other = "LY" if label != "LY" else "SNE"
        listing.write_text("".join([lines[0], lines[1].replace(f",{label}", f",{other}", 1), *lines[2:]]), "utf-8")
        with pytest.raises(UserError, match=rf"labels 1 images otherwise than when the run was trained, {image_id} f"):
            reopen(finished)
        listing.write_text(text, encoding="utf-8")
        (path,) = root_of(finished).rglob(image_id)
        image = path.read_bytes()
        path.write_bytes(image + b"\0")
        with pytest.raises(UserError, match=r"has other files now than when the run was trained, of the same names"):
            reopen(finished)
        path.write_bytes(image)
    finally:
        listing.write_text(text, encoding="utf-8")


def test_training_a_fold_afresh_forgets_its_embeddings(finished: LoadedRun) -> None:
    run_embeddings(reopen(finished))
    copy = RunFolder("copy", finished.folder.root)
    shutil.copytree(finished.folder.path, copy.path)
    split = copy.split()
    copy.begin_fold(0, copy.fold(0).metadata(), split)
    assert not copy.fold(0).embeddings.exists()
    assert copy.fold(1).embeddings.exists()
    shutil.rmtree(copy.path)
