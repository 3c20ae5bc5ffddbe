"""Paper 001's test pass: nine networks, eight views, against a plain loop over models and views."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from leukofold.benchmarks.measuring import Report, synchronise, take_turns, timed
from leukofold.benchmarks.plain import OwnProcess, plain_predictions
from leukofold.competitions import get_competition
from leukofold.config import CONFIG_FOLDER, load_config
from leukofold.inference import tta_views
from leukofold.models.classifier import Classifier
from leukofold.models.complexity import complexity
from leukofold.prediction import Member, predict_images
from leukofold.rendering import RenderSpec, render
from leukofold.training.launch import make_inference_accelerator

NETWORKS = ("convnextv2_tiny", "swinv2_tiny", "dinobloom_small")
FOLDS = 3
FULL = 16_477  # test images of WBCBench
TARGET, FULL_TARGET = 1.5, 90.0  # times the plain loop on a CPU; seconds of the whole pass on an H200
TURNS = 2
MOST = 2000  # images of the plain loop
MATRIX = {"cpu": 4096, "cuda": 16384}  # side of the matrices that the machine's rate is measured with


def test_pass(report: Report, images: int | None, precision: str | None) -> None:
    """The nine-model, eight-view test pass: predict.py's way, and a plain loop, at the same precision."""
    on_gpu = torch.cuda.is_available()
    count = images or (FULL if on_gpu else 16)
    accelerator = make_inference_accelerator(precision)
    device, batch = accelerator.device, min(256 if on_gpu else 64, count)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wbcbench"
        render("wbcbench", root, RenderSpec(images=60, test_images=count, patients=6))
        competition = get_competition("wbcbench")
        frame = competition.read(root).test.assign(label=0)
        members = build_members(NETWORKS, CONFIG_FOLDER, device, competition.class_names)
        report.begin(
            f"{len(NETWORKS)} networks of {FOLDS} folds, {len(members[0].views)} views, {count} images from their "
            f"files, random weights, precision {accelerator.mixed_precision}, on {device.type}"
        )

        results: dict[str, np.ndarray] = {}

        def ours(compiled: bool = False, rows: pd.DataFrame = frame) -> None:
            results["ours"] = predict_images(members, rows[["path"]], accelerator, batch, None, None, compiled)

        own = (NETWORKS, CONFIG_FOLDER, frame.head(MOST), competition.class_names, batch, accelerator.mixed_precision)
        with OwnProcess(plain_pass, *own) as plain:

            def theirs() -> None:
                results["plain"] = plain()

            seconds = {way: taken.min() for way, taken in take_turns({"ours": ours, "plain": theirs}, TURNS).items()}
        rates = {
            "ours": count / seconds["ours"],
            "plain loop over models and views": min(count, MOST) / seconds["plain"],
        }
        if on_gpu:
            report.add_seconds("compiling, once", timed(lambda: ours(True, frame.head(batch))))
            rates["ours, compiled"] = count / timed(lambda: ours(True))
    _tell(report, rates, count, members, _matrix_rate(device, accelerator.mixed_precision))
    same = results["ours"][:MOST].argmax(axis=1) == results["plain"].argmax(axis=1)
    report.add("both predict the same class of", f"{same.mean():9.1%} of the images", {"agreement": float(same.mean())})
    if not on_gpu:
        report.not_measured(
            f"{FULL} images on an H200 (aimed at: less than {FULL_TARGET:.0f} s)",
            "no GPU here",
            "python scripts/benchmark.py test_pass",
        )


def _tell(report: Report, rates: dict[str, float], count: int, members: list[Member], matrix_rate: float) -> None:
    """Reports images per second, shares of the machine's matrix rate, and how much faster ours is."""
    each = 2 * sum(_multiply_adds(member) for member in members)
    for name, rate in rates.items():
        report.add_rate(name, count, count / rate)
        share = rate * each / matrix_rate
        report.add(
            f"{name}, arithmetic",
            f"{rate * each / 1e12:9.3f} TFLOP/s, {share:.0%} of {matrix_rate / 1e12:.2f}, the matrix product's here",
            {"flop_per_second": rate * each, "share_of_matrix_rate": share, "matrix_flop_per_second": matrix_rate},
        )
    report.add_ratio("ours / plain loop", rates["ours"] / rates["plain loop over models and views"], TARGET)


def _multiply_adds(member: Member) -> int:
    """Counts what all networks and views of a member need for one image."""
    network, side = member.networks[0], member.config.image.side
    once = complexity(network, torch.zeros(1, 3, side, side, dtype=torch.uint8)).multiply_adds
    return once * len(member.networks) * len(member.views)


def _matrix_rate(device: torch.device, precision: str) -> float:
    """Returns the machine's rate of large matrix products at a precision, FLOP/s."""
    side = MATRIX[device.type]
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.rand(side, side, device=device, dtype=kind)

    def multiply() -> None:
        _ = matrix @ matrix
        synchronise()

    multiply()
    return float(2 * side**3 / take_turns({"product": multiply}, 5)["product"].min())


def build_members(
    names: Sequence[str], folder: Path, device: torch.device, class_names: tuple[str, ...]
) -> list[Member]:
    """Builds paper 001's networks, with random weights and flips and quarter turns as views."""
    members = []
    for name in names:
        overrides = ["model.pretrained=false", "image.denoise=null", "inference.tta=dihedral"]
        config = load_config([folder / "wbcbench" / "paper001" / f"{name}.yaml"], overrides)
        networks = []
        for fold in range(FOLDS):
            torch.manual_seed(fold)
            networks.append(Classifier(config.model, config.image, len(class_names)).to(device).eval())
        members.append(Member(name, config, class_names, networks, tta_views(config.inference), (), True))
    return members


def plain_pass(
    names: Sequence[str], folder: Path, frame: pd.DataFrame, class_names: tuple[str, ...], batch: int, precision: str
) -> Callable[[], np.ndarray]:
    """Builds the same networks for the plain loop, in a process of its own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return partial(plain_predictions, frame, build_members(names, folder, device, class_names), batch, device, half)
