"""From an image's file to its class: PyTorch and ONNX Runtime, on one core, on all and on the GPU."""

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch

from leukofold.benchmarks.measuring import Report
from leukofold.cells import FILES_OF
from leukofold.competitions import get_competition
from leukofold.config import Config, load_config
from leukofold.errors import UserError
from leukofold.experiment import modalities_seen
from leukofold.exporting import CUDA, OnnxClassifier, export_networks, load_folds
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.models.classifier import Classifier
from leukofold.processes import available_cores
from leukofold.rendering import RenderSpec, render
from leukofold.runs import RunFolder

Network = Callable[[np.ndarray], np.ndarray]  # n x 3 x S x S uint8 to n x K probabilities

CLAIM = 50.0  # ms per image on a CPU: Kochhar et al. 2025, ResNet-50 on C-NMC
TURNS = 6  # how often the ways that are compared take turns
AT_ONCE = 16  # images, where throughput is measured


def latency(report: Report, images: int | None, run: str | None, paths: list[Path] | None) -> None:
    """From an image's file to its class: PyTorch and ONNX Runtime, on one core, on all and on the GPU."""
    config, network = _latency_network(run, paths)
    competition = get_competition(config.data.competition)
    with tempfile.TemporaryDirectory() as folder:
        files = _latency_files(config, images or 60, Path(folder) / competition.name)
        model = Path(folder) / "model.onnx"
        export_networks([network], config.image.size, model, {"class_names": list(competition.class_names)})
        report.begin(
            f"{config.model.backbone} at {config.image.size} pixels, {f'run {run}' if run else 'random weights'}, on "
            f"{len(files)} rendered cells of {competition.title}; ms per cell"
        )
        whole: dict[str, float] = {}
        for threads in sorted({1, available_cores()}):
            torch.set_num_threads(threads)
            title = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
            times = _compare_networks(report, title, _cpu_ways(network, model, threads), config, files, threads)
            whole |= {f"{way} ({title})": taken for way, taken in times.items()}
        if torch.cuda.is_available():
            _compare_networks(report, "GPU", _gpu_ways(report, network, model), config, files, available_cores())
        else:
            report.begin("GPU")
            report.not_measured("PyTorch, ONNX Runtime", "no GPU here", "python scripts/benchmark.py latency")
    report.begin(f"at most {CLAIM:.0f} ms per image on a CPU, as Kochhar et al. 2025 claim of their ResNet-50:")
    for way, taken in whole.items():
        report.add(way, f"{'met' if taken <= CLAIM else 'not met'}, {taken:.1f} ms", {"ms": taken, "claim_ms": CLAIM})


def _latency_network(run: str | None, paths: list[Path] | None) -> tuple[Config, Classifier]:
    """Loads a run's network, or builds one with random weights."""
    if run is not None:
        folder = RunFolder(run)
        trained = load_folds(folder, folder.complete_folds()[:1] or None)
        return trained.config, trained.networks[0]
    resnet = {"backbone": "resnet50", "head": "mlp", "hidden": [512]}
    config = load_config(paths) if paths else Config.model_validate({"data": {"competition": "cnmc"}, "model": resnet})
    if config.svm is not None:
        raise UserError("--config: a support vector machine; latency measures networks")
    untrained = config.model.model_copy(update={"pretrained": False})
    classes = get_competition(config.data.competition).class_names
    torch.manual_seed(0)
    network = Classifier(untrained, config.image, len(classes), len(modalities_seen(config)) or 1).eval()
    for name, value in network.named_parameters():
        if name.endswith("weight") and not value.any():  # timm lets residual blocks begin as nothing: no comparison
            torch.nn.init.constant_(value, 0.5)  # with 1, the logits of a ResNet-50 are so far apart that none is
    return config, network


def _latency_files(config: Config, images: int, root: Path) -> list[tuple[str, ...]]:
    """Draws cells in the competition's format; returns the files of each that the network sees."""
    # More than are timed: WBCBench needs 60, and Acevedo-20 has classes that are left out
    name = config.data.competition
    render(name, root, RenderSpec(images=2 * images, test_images=10, patients=6))
    columns = [FILES_OF + modality for modality in modalities_seen(config)] or ["path"]
    cells = get_competition(name).read(root).labelled[columns].head(images)
    return list(cells.itertuples(index=False, name=None))


def _cpu_ways(network: Classifier, model: Path, threads: int) -> dict[str, Network]:
    """Returns the ways of computing on the CPU, PyTorch's usual one first."""
    plain, together = (
        copy.deepcopy(network).to(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)
    )
    return {
        "PyTorch": partial(_pytorch, plain),
        "PyTorch, channels last": partial(_pytorch, together),
        "ONNX Runtime": OnnxClassifier(model, threads).predict,
    }


def _gpu_ways(report: Report, network: Classifier, model: Path) -> dict[str, Network]:
    """Returns the ways of computing on the GPU, PyTorch's first."""
    ways: dict[str, Network] = {"PyTorch": partial(_pytorch, network.to("cuda"))}
    exported = OnnxClassifier(model, provider=CUDA) if CUDA in onnxruntime.get_available_providers() else None
    if exported is not None and CUDA in exported.session.get_providers():  # it falls back on the CPU without a word
        ways["ONNX Runtime"] = exported.predict
    else:
        why = "the onnxruntime that is installed does not compute on this GPU"
        report.not_measured("ONNX Runtime on the GPU", why, "pip install onnxruntime-gpu")
    return ways


def _pytorch(network: Classifier, images: np.ndarray) -> np.ndarray:
    """Returns the probabilities of images that lie in the computer's memory, there again."""
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(images).to(network.mean.device)).softmax(dim=1).cpu().numpy())


def _compare_networks(
    report: Report,
    title: str,
    ways: dict[str, Network],
    config: Config,
    files: list[tuple[str, ...]],
    threads: int,
) -> dict[str, float]:
    """Times several ways by turns, prints what they take, and returns the median ms per image of each."""
    cv2.setNumThreads(threads)
    report.begin(title)
    singly, probabilities = _take_turns(ways, config, [[file] for file in files])
    several = [[files[(start + k) % len(files)] for k in range(AT_ONCE)] for start in range(0, len(files), AT_ONCE)]
    batches = _take_turns(ways, config, [several[k % len(several)] for k in range(max(TURNS, len(several)))])[0]
    for way, times in singly.items():
        figures = {
            "median_ms": float(np.median(times.sum(axis=1))),
            "within_95_ms": float(np.percentile(times.sum(axis=1), 95)),
            "prepare_ms": float(np.median(times[:, 0])),
            "network_ms": float(np.median(times[:, 1])),
            "at_once_ms": float(np.median(batches[way].sum(axis=1))),
            "at_once_network_ms": float(np.median(batches[way][:, 1])),
        }
        report.add(
            way,
            f"median {figures['median_ms']:7.1f}, 95 % within {figures['within_95_ms']:7.1f} "
            f"(read and prepare {figures['prepare_ms']:5.1f}, network {figures['network_ms']:7.1f}); "
            f"{AT_ONCE} at once {figures['at_once_ms']:7.1f} (network {figures['at_once_network_ms']:7.1f})",
            figures,
        )
    medians = {way: float(np.median(times.sum(axis=1))) for way, times in singly.items()}
    for way in list(ways)[1:]:
        alone = np.median(singly[way][:, 1]) / np.median(singly["PyTorch"][:, 1])
        difference = np.abs(probabilities[way] - probabilities["PyTorch"]).max()
        whole = medians[way] / medians["PyTorch"]
        report.add(
            f"{way} / PyTorch",
            f"{whole:.2f} of the time, {alone:.2f} of the network's; largest difference of a probability "
            f"{difference:.1e}",
            {"time_share": whole, "network_share": float(alone), "largest_difference": float(difference)},
        )
    return medians


def _take_turns(
    ways: dict[str, Network], config: Config, batches: list[list[tuple[str, ...]]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Times every way on every batch of files; the ways take turns, so that a slow minute of the machine hits all.

    Returns:
        Per way the ms per image, batches x 2 (read and prepare; network and class), and the images' probabilities.
    """
    competition = get_competition(config.data.competition)
    preparation = Preparation(config.image, competition.preprocess)
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    results: dict[str, list[np.ndarray]] = {way: [] for way in ways}

    def measure(network: Network, batch: list[tuple[str, ...]]) -> tuple[list[float], np.ndarray]:
        began = time.perf_counter()
        cells = [np.concatenate([preparation(read_image(file)) for file in files], axis=2) for files in batch]
        images = np.ascontiguousarray(np.stack(cells).transpose(0, 3, 1, 2))
        prepared = time.perf_counter()
        probabilities = network(images)
        _ = [competition.class_names[k] for k in probabilities.argmax(axis=1)]
        ended = time.perf_counter()
        return [1000 * (prepared - began) / len(batch), 1000 * (ended - prepared) / len(batch)], probabilities

    for turn in range(TURNS):
        for way, network in ways.items():
            own = batches[turn::TURNS]
            measure(network, own[0])  # not counted: finds the caches full of the way before
            for taken, probabilities in (measure(network, batch) for batch in own):
                times[way].append(taken)
                results[way].append(probabilities)
    return {way: np.array(taken) for way, taken in times.items()}, {
        way: np.concatenate(found) for way, found in results.items()
    }
