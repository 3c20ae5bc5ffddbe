"""Compares two ways of doing a thing in one run, on rendered images.

    python scripts/benchmark.py cache          # training images from the cache, and decoded from their files
    python scripts/benchmark.py denoise        # our non-local means, and scikit-image's
    python scripts/benchmark.py duplicates     # all pairs of 100,000 hashes, by matrix products and one by one
    python scripts/benchmark.py blend          # every method of combining nine runs, judged by nested folds
    python scripts/benchmark.py frozen         # epochs of a frozen ResNet-50, through it and on its cached features
    python scripts/benchmark.py latency        # one image from its file to its class, by PyTorch and by ONNX Runtime
    python scripts/benchmark.py latency --run cnmc/resnet50        # the same with a run's network
    python scripts/benchmark.py latency --config configs/wbcbench/convnextv2_tiny.yaml

Behaviours: reads oof/<run>/ for --run; creates nothing but temporary files; prints one line per measurement. Run it on
a machine that does nothing else.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from leukofold.cli import main_guard
from leukofold.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from leukofold.config import Config, ImageConfig
    from leukofold.models.classifier import Classifier

    Network = Callable[[np.ndarray], np.ndarray]  # n x 3 x S x S uint8 to n x K probabilities

CLAIM = 50.0  # ms per image on a CPU: Kochhar et al. 2025, ResNet-50 on C-NMC
TURNS = 6  # how often the ways that are compared take turns
AT_ONCE = 16  # images, where throughput is measured


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted([*BENCHMARKS, "latency"]), help="what to compare")
    parser.add_argument("--images", type=int, metavar="N", help="number of images or hashes")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--run", metavar="NAME", help="latency: the network of this run's first complete fold")
    network.add_argument(
        "--config",
        type=Path,
        action="append",
        metavar="YAML",
        help="latency: this configuration's network with random weights (default: ResNet-50 on C-NMC at 224 pixels); "
        "may be given several times, later ones win",
    )
    return parser.parse_args()


def timed(title: str, count: int, work: Callable[[], object]) -> None:
    """Runs some work once and prints images per second and milliseconds per image."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    print(
        f"  {title:<44} {count / seconds:9.0f} images/s  {1000 * seconds / count:8.3f} ms per image  {seconds:7.1f} s"
    )


def cache(images: int | None) -> None:
    """Training images through the image cache, against decoding, denoising and resizing each one every time."""
    from leukofold.competitions import get_competition
    from leukofold.config import DenoiseConfig, ImageConfig
    from leukofold.rendering import RenderSpec, render

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wbcbench"
        render("wbcbench", root, RenderSpec(images=images or 600, test_images=20, patients=30))
        frame = get_competition("wbcbench").read(root).labelled
        for title, denoising in (("plain", None), ("denoised", DenoiseConfig())):
            print(f"{title}, {len(frame)} images of 368 pixels, to 224, augmented, one process")
            _compare_sources(frame, ImageConfig(size=224, denoise=denoising), Path(folder))


def _compare_sources(frame: "pd.DataFrame", config: "ImageConfig", folder: Path) -> None:
    """Times the cache against the files, at one setting of the preparation."""
    from leukofold.augment import Augmentation
    from leukofold.images.cache import open_cache
    from leukofold.images.cellimages import CellImages
    from leukofold.images.preparing import Preparation
    from leukofold.images.reading import read_image
    from leukofold.loaders import CellDataset

    preparation, augmentation = Preparation(config, lambda image: image), Augmentation(config.augment)
    timed("building the cache, all cores, once", len(frame), lambda: open_cache(frame, preparation, "", folder, False))
    dataset = CellDataset(CellImages([open_cache(frame, preparation, "", folder, False)]), frame, augmentation)
    rows = range(0, len(frame), 3)
    timed("from the cache, every epoch", len(rows), lambda: [dataset[(row, row)] for row in rows])
    timed(
        "from the files, every epoch",
        len(rows),
        lambda: [augmentation(preparation(read_image(frame.path[row])), row) for row in rows],
    )


def denoise(images: int | None) -> None:
    """Our non-local means against scikit-image's fast mode at the same settings, on rendered cells with known noise."""
    import numpy as np

    from leukofold.rendering.cell import draw_image
    from leukofold.rendering.stain import sample_appearance

    rng = np.random.default_rng(0)
    clean = [draw_image("SNE", sample_appearance(rng), rng) for _ in range(images or 12)]
    for sigma in (3.0, 9.0, 16.0):
        noisy = [np.clip(image + rng.normal(0, sigma, image.shape) + 0.5, 0, 255).astype(np.uint8) for image in clean]
        _compare_denoisers(clean, noisy, sigma)


def _compare_denoisers(clean: "list[np.ndarray]", noisy: "list[np.ndarray]", sigma: float) -> None:
    """Times both at one strength of noise, and prints how close they come to the clean images and to each other."""
    import numpy as np
    from skimage.restoration import denoise_nl_means

    from leukofold.images.denoising import Denoising, nonlocal_means, search_distance

    settings, distance = Denoising(), search_distance(sigma)
    arguments = {"patch_size": settings.patch_size, "patch_distance": distance, "h": settings.strength * sigma}
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []

    def scikit_image() -> None:
        for image in noisy:
            filtered = denoise_nl_means(image.astype(np.float32), sigma=sigma, channel_axis=-1, **arguments)
            theirs.append(np.clip(np.rint(filtered), 0, 255).astype(np.uint8))

    def psnr(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(one, other, strict=True)]
        return float(np.mean([10 * np.log10(255**2 / error) for error in errors]))

    print(f"noise {sigma:.0f} of 255, {len(clean)} images of 368 pixels, patch distance {distance}, one at a time")
    timed("ours", len(clean), lambda: ours.extend(nonlocal_means(image, sigma, settings) for image in noisy))
    timed("scikit-image, fast mode", len(clean), scikit_image)
    print(
        f"  PSNR to the clean image: noisy {psnr(clean, noisy):.2f} dB, ours {psnr(clean, ours):.2f}, "
        f"scikit-image {psnr(clean, theirs):.2f}; ours to scikit-image {psnr(ours, theirs):.2f}"
    )


def duplicates(images: int | None) -> None:
    """All pairs of hashes by matrix products, against one hash after the other."""
    import numpy as np

    from leukofold.duplicates import HASH_DISTANCE, candidate_pairs

    count, rng = images or 100_000, np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    hashes[-100:] = hashes[:100]
    print(f"{count} hashes of 256 bits, 100 of them twice")
    timed("matrix products, all pairs", count, lambda: candidate_pairs(hashes, HASH_DISTANCE))
    some = min(count, 500)

    def one_by_one() -> None:
        for k in range(some):
            np.flatnonzero(np.bitwise_count(hashes[k] ^ hashes).sum(axis=1) <= HASH_DISTANCE)

    timed("one hash against all, popcount", some, one_by_one)


def blend(images: int | None) -> None:
    """Every method of combination on nine runs of 13 classes, from logits to the judgement by nested folds."""
    import numpy as np

    from leukofold.blending.aligning import AlignedRuns
    from leukofold.blending.judging import judge
    from leukofold.blending.methods import PLAIN, method_names
    from leukofold.competitions import get_competition

    count, rng = images or 38_535, np.random.default_rng(0)
    competition = get_competition("wbcbench")
    classes = len(competition.class_names)
    labels = rng.choice(classes, count, p=1.6 ** np.arange(classes) / (1.6 ** np.arange(classes)).sum())
    group = rng.integers(0, 345, count)
    signal = rng.gamma(2, 2, (count, 1)) * np.eye(classes)[labels] + rng.normal(size=(count, classes))
    oof = np.stack([signal + rng.normal(0, 0.5 + 0.1 * k, signal.shape) for k in range(9)]).astype(np.float32)
    names = tuple(f"run {k}" for k in range(9))
    for folds in (3, 5):
        runs = AlignedRuns(
            names,
            competition.class_names,
            competition.metric,
            oof,
            oof[None, :, :0],
            labels,
            group % folds,
            group,
            np.zeros(count, dtype=bool),
        )
        print(f"{count} images of 345 groups, {classes} classes, 9 runs, {folds} folds")
        for method in method_names():
            if method != PLAIN:
                timed(method, count, partial(judge, runs, [method]))


def frozen(images: int | None) -> None:
    """Epochs of paper 004's frozen ResNet-50 through the backbone, and on its cached features, in one fold."""
    import pandas as pd

    from leukofold.config import CONFIG_FOLDER, load_config
    from leukofold.rendering import RenderSpec, render
    from leukofold.runs import RunFolder
    from leukofold.training.fold import train_folds

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
        print(
            f"ResNet-50 at {config.image.size} pixels, frozen; an epoch: {trained} images and {validated} to validate"
        )
        for title, name in (("through the backbone", "resnet50_frozen"), ("on cached features", "resnet50_cached")):
            print(f"  {f'an epoch {title}':<44} {histories[name].seconds.median():9.2f} s")
        once = seconds["resnet50_cached"] - seconds["resnet50_cached again"]
        views = config.training.cached_views + 1
        print(f"  {f'{views} views of {images or 120} images, once for all folds':<44} {once:9.2f} s")


def latency(images: int, run: str | None, paths: list[Path] | None) -> None:
    """From an image's file to its class: PyTorch and ONNX Runtime, on one core, on all and on the GPU."""
    import torch

    from leukofold.competitions import get_competition
    from leukofold.exporting import export_networks
    from leukofold.processes import available_cores

    config, network = _latency_network(run, paths)
    competition = get_competition(config.data.competition)
    with tempfile.TemporaryDirectory() as folder:
        files = _latency_files(config, images, Path(folder) / competition.name)
        model = Path(folder) / "model.onnx"
        export_networks([network], config.image.size, model, {"class_names": list(competition.class_names)})
        print(
            f"{config.model.backbone} at {config.image.size} pixels, {f'run {run}' if run else 'random weights'}, on "
            f"{len(files)} rendered cells of {competition.title}; ms per cell"
        )
        whole: dict[str, float] = {}
        for threads in sorted({1, available_cores()}):
            torch.set_num_threads(threads)
            title = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
            times = _compare_networks(title, _cpu_ways(network, model, threads), config, files, threads)
            whole |= {f"{way} ({title})": taken for way, taken in times.items()}
        if torch.cuda.is_available():
            _compare_networks("GPU", _gpu_ways(network, model), config, files, available_cores())
        else:
            print("GPU\n  not measured: no GPU here")
    print(f"at most {CLAIM:.0f} ms per image on a CPU, as Kochhar et al. 2025 claim of their ResNet-50:")
    for way, taken in whole.items():
        print(f"  {way:<44} {'met' if taken <= CLAIM else 'not met'}, {taken:.1f} ms")


def _latency_network(run: str | None, paths: list[Path] | None) -> "tuple[Config, Classifier]":
    """Loads a run's network, or builds one with random weights."""
    import torch

    from leukofold.competitions import get_competition
    from leukofold.config import Config, load_config
    from leukofold.experiment import modalities_seen
    from leukofold.exporting import load_folds
    from leukofold.models.classifier import Classifier
    from leukofold.runs import RunFolder

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


def _latency_files(config: "Config", images: int, root: Path) -> list[tuple[str, ...]]:
    """Draws cells in the competition's format; returns the files of each that the network sees."""
    from leukofold.cells import FILES_OF
    from leukofold.competitions import get_competition
    from leukofold.experiment import modalities_seen
    from leukofold.rendering import RenderSpec, render

    # More than are timed: WBCBench needs 60, and Acevedo-20 has classes that are left out
    name = config.data.competition
    render(name, root, RenderSpec(images=2 * images, test_images=10, patients=6))
    columns = [FILES_OF + modality for modality in modalities_seen(config)] or ["path"]
    cells = get_competition(name).read(root).labelled[columns].head(images)
    return list(cells.itertuples(index=False, name=None))


def _cpu_ways(network: "Classifier", model: Path, threads: int) -> "dict[str, Network]":
    """Returns the ways of computing on the CPU, PyTorch's usual one first."""
    import copy

    import torch

    from leukofold.exporting import OnnxClassifier

    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return {
        "PyTorch": partial(_pytorch, network),
        "PyTorch, channels last": partial(_pytorch, channels_last),
        "ONNX Runtime": OnnxClassifier(model, threads).predict,
    }


def _gpu_ways(network: "Classifier", model: Path) -> "dict[str, Network]":
    """Returns the ways of computing on the GPU, PyTorch's first."""
    import onnxruntime

    from leukofold.exporting import CUDA, OnnxClassifier

    ways: dict[str, Network] = {"PyTorch": partial(_pytorch, network.to("cuda"))}
    exported = OnnxClassifier(model, provider=CUDA) if CUDA in onnxruntime.get_available_providers() else None
    if exported is not None and CUDA in exported.session.get_providers():  # it falls back on the CPU without a word
        ways["ONNX Runtime"] = exported.predict
    else:
        print("ONNX Runtime on the GPU: not measured: the onnxruntime that is installed does not compute on this one")
    return ways


def _pytorch(network: "Classifier", images: "np.ndarray") -> "np.ndarray":
    """Returns the probabilities of images that lie in the computer's memory, there again."""
    import numpy as np
    import torch

    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(images).to(network.mean.device)).softmax(dim=1).cpu().numpy())


def _compare_networks(
    title: str, ways: "dict[str, Network]", config: "Config", files: list[tuple[str, ...]], threads: int
) -> dict[str, float]:
    """Times several ways by turns, prints what they take, and returns the median ms per image of each."""
    import cv2
    import numpy as np

    cv2.setNumThreads(threads)
    print(title)
    singly, probabilities = _take_turns(ways, config, [[file] for file in files])
    several = [[files[(start + k) % len(files)] for k in range(AT_ONCE)] for start in range(0, len(files), AT_ONCE)]
    batches = _take_turns(ways, config, [several[k % len(several)] for k in range(max(TURNS, len(several)))])[0]
    for way, times in singly.items():
        one, many = times.sum(axis=1), batches[way].sum(axis=1)
        print(
            f"  {way:<24} median {np.median(one):7.1f}, 95 % within {np.percentile(one, 95):7.1f} "
            f"(read and prepare {np.median(times[:, 0]):5.1f}, network {np.median(times[:, 1]):7.1f}); "
            f"{AT_ONCE} at once {np.median(many):7.1f} (network {np.median(batches[way][:, 1]):7.1f})"
        )
    medians = {way: float(np.median(times.sum(axis=1))) for way, times in singly.items()}
    for way in list(ways)[1:]:
        alone = np.median(singly[way][:, 1]) / np.median(singly["PyTorch"][:, 1])
        difference = np.abs(probabilities[way] - probabilities["PyTorch"]).max()
        print(
            f"  {way} / PyTorch: {medians[way] / medians['PyTorch']:.2f} of the time, {alone:.2f} of the network's; "
            f"largest difference of a probability {difference:.1e}"
        )
    return medians


def _take_turns(
    ways: "dict[str, Network]", config: "Config", batches: list[list[tuple[str, ...]]]
) -> "tuple[dict[str, np.ndarray], dict[str, np.ndarray]]":
    """Times every way on every batch of files; the ways take turns, so that a slow minute of the machine hits all.

    Returns:
        Per way the ms per image, batches x 2 (read and prepare; network and class), and the images' probabilities.
    """
    import numpy as np

    from leukofold.competitions import get_competition
    from leukofold.images.preparing import Preparation
    from leukofold.images.reading import read_image

    competition = get_competition(config.data.competition)
    preparation = Preparation(config.image, competition.preprocess)
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    results: dict[str, list[np.ndarray]] = {way: [] for way in ways}

    def measure(network: "Network", batch: list[tuple[str, ...]]) -> "tuple[list[float], np.ndarray]":
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


BENCHMARKS: dict[str, Callable[[int | None], None]] = {
    "blend": blend,
    "cache": cache,
    "denoise": denoise,
    "duplicates": duplicates,
    "frozen": frozen,
}


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    if arguments.images is not None and arguments.images < 30:
        raise UserError(f"--images {arguments.images}: give at least 30")
    if arguments.what == "latency":
        latency(arguments.images or 60, arguments.run, arguments.config)
    elif arguments.run or arguments.config:
        raise UserError(f"--run and --config: only latency measures a network, {arguments.what} has none")
    else:
        BENCHMARKS[arguments.what](arguments.images)


if __name__ == "__main__":
    main()
