"""A frozen backbone: epochs through it, and on its cached features."""

import contextlib
import io
import tempfile
import time
from pathlib import Path

import pandas as pd

from leukofold.benchmarks.measuring import Report
from leukofold.config import CONFIG_FOLDER, load_config
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds


def frozen(report: Report, images: int | None) -> None:
    """Epochs of paper 004's frozen ResNet-50 through the backbone, and on its cached features, in one fold."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        render("cnmc", root / "cnmc", RenderSpec(images=images or 120, test_images=10, patients=30))
        settings = [f"data.root={root / 'cnmc'}", f"data.cache={root / 'cache'}", "model.pretrained=false"]
        settings += ["folds.count=2", "training.epochs=3", "training.patience=3"]
        histories, seconds = {}, {}
        for name in ("resnet50_frozen", "resnet50_cached", "resnet50_cached again"):
            config = load_config([CONFIG_FOLDER / "cnmc/paper004" / f"{name.split()[0]}.yaml"], settings)
            run = RunFolder(name, root / "oof")
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                train_folds(config, run, [0], resume=False, debug=False)
            seconds[name] = time.perf_counter() - began
            histories[name] = pd.read_csv(run.fold(0).history)
        split, batch = run.split(), config.training.batch_size
        trained, validated = (split.fold == 1).sum() // batch * batch, (split.fold == 0).sum()
        report.begin(
            f"ResNet-50 at {config.image.size} pixels, frozen; an epoch: {trained} images and {validated} to validate"
        )
        epochs = {name: float(history.seconds.median()) for name, history in histories.items()}
        report.add_seconds("an epoch through the backbone", epochs["resnet50_frozen"])
        report.add_seconds("an epoch on cached features", epochs["resnet50_cached"])
        once = seconds["resnet50_cached"] - seconds["resnet50_cached again"]
        views = config.training.cached_views + 1
        report.add_seconds(f"{views} views of {images or 120} images, once for all folds", once)
        report.add_ratio("cached / through the backbone", epochs["resnet50_frozen"] / epochs["resnet50_cached"])
