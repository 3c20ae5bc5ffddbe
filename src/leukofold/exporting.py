"""A run's networks as one ONNX file that is checked against PyTorch, and a small runtime for such files."""

import inspect
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from tqdm import tqdm

from leukofold.competitions import Competition, get_competition
from leukofold.config import Config
from leukofold.errors import UserError, first_line
from leukofold.files import replacing, write_json
from leukofold.images.preparing import Preparation
from leukofold.models.classifier import Classifier
from leukofold.models.trained import load_network, trained_config
from leukofold.processes import available_cores
from leukofold.provenance import git_commit, library_versions
from leukofold.runs import RunFolder

OPSET = 20  # PyTorch's own default; the first with GELU as one node
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
LARGEST = 2**31 - 2**20  # bytes: protobuf, in which ONNX is written, ends at 2 GiB; a little is left for the graph

TOLERANCE = 1e-4
"""Largest difference of a logit to PyTorch, over the standard deviation of the logits.

PyTorch in float32 is itself up to 2e-6 from PyTorch in float64 (ResNet-50, ConvNeXt V2-T, SwinV2-T and DinoBloom-S with
random weights). An epsilon of the normalisations that is ten times too large makes 2e-4 or more in them, GELU by its
approximation 4e-4 in ConvNeXt V2-T, and a mean that is off by one grey level 1e-2 in ResNet-50.
"""


@dataclass(frozen=True)
class TrainedFolds:
    """Networks of one run.

    Attributes:
        run: The run's folder.
        folds: Numbers of the folds.
        metadata: Of the first of them.
        config: The run's configuration.
        networks: One per fold, on the CPU, in evaluation mode.
    """

    run: RunFolder
    folds: Sequence[int]
    metadata: Mapping[str, Any]
    config: Config
    networks: Sequence[Classifier]


def load_folds(run: RunFolder, folds: Sequence[int] | None = None) -> TrainedFolds:
    """Loads the networks of a run's complete folds.

    Args:
        run: The run.
        folds: The folds to load; None: all that are complete.

    Returns:
        The networks.

    Raises:
        UserError: There is no such run, a fold is not complete, or the run has no networks.
    """
    complete = run.complete_folds()
    if not complete:
        raise UserError(f"{run.path}: no run with a complete fold; train it with scripts/train_fold.py")
    chosen = complete if folds is None else sorted(set(folds))
    for k in chosen:
        if k not in complete:
            raise UserError(f"--fold {k}: {run.path} has complete folds {', '.join(map(str, complete))} only")
    metadata = run.fold(chosen[0]).metadata()
    if not metadata:
        raise UserError(f"{run.fold(chosen[0]).path / 'metadata.json'}: no such file; train that fold again")
    config, classes = trained_config(run, metadata), len(metadata["class_names"])
    if config.svm is not None:
        raise UserError(f"{run.path}: a support vector machine; only networks can be exported")
    if config.inference.batch_statistics == "domain":
        raise UserError(
            f"{run.path}: its batch statistics are those of the images that are scored together "
            "(inference.batch_statistics: domain), which one exported network cannot know; use scripts/predict.py"
        )
    networks = [load_network(config, run.fold(k), classes, torch.device("cpu")) for k in chosen]
    return TrainedFolds(run, chosen, metadata, config, cast(list[Classifier], networks))


class MeanOfFolds(nn.Module):
    """Networks of the same classes and image size as one.

    Args:
        networks: At least one.
    """

    def __init__(self, networks: Sequence[Classifier]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.channels = networks[0].channels

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores images as they are, without test-time augmentation.

        Args:
            images: n x C x S x S uint8, RGB; of several images of a cell the colours of one after another.

        Returns:
            n x K each: probabilities, which are the softmax of the mean logits, and the mean logits.
        """
        logits = torch.stack([network(images) for network in self.networks]).mean(dim=0)
        return logits.softmax(dim=1), logits


class OnnxClassifier:
    """Runs an exported file with ONNX Runtime.

    Args:
        model: The file.
        threads: Number of threads that compute; None: one per core of this process.
        provider: ``CPU``, or ``CUDA`` where the installed ONNX Runtime has it.
    """

    def __init__(self, model: Path, threads: int | None = None, provider: str = CPU) -> None:
        options = onnxruntime.SessionOptions()
        # Left to itself, ONNX Runtime counts the machine's cores, and not those that this process may use
        options.intra_op_num_threads = threads or available_cores()
        # Its threads would go on spinning after a call, and take the cores from what is timed next
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors
        self.model = model
        self.session = onnxruntime.InferenceSession(str(model), options, providers=[provider])

    @cached_property
    def class_names(self) -> list[str]:
        """K names, from the file's description.

        Raises:
            UserError: The description is missing or damaged.
        """
        path = description_path(self.model)
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["class_names"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the description of an ONNX file ({error}); export it again") from None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, and its side twice, pixels."""
        channels, height, width = self.session.get_inputs()[0].shape[1:]
        return int(channels), int(height), int(width)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns n x K float32, the mean over the folds, of n x C x S x S uint8 RGB images."""
        return np.asarray(self.session.run(["logits"], {"images": images})[0])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns n x K float32 probabilities of n x C x S x S uint8 RGB images."""
        return np.asarray(self.session.run(["probabilities"], {"images": images})[0])


def description_path(out: Path) -> Path:
    """Returns the file that describes an exported one: ``<out>.json``."""
    return out.with_name(f"{out.name}.json")


def export_run(trained: TrainedFolds, out: Path) -> dict[str, Any]:
    """Writes a run's networks as one ONNX file, and beside it what has to be known to use it.

    Args:
        trained: The networks.
        out: The file to write; its description is ``description_path(out)``.

    Returns:
        The description.

    Raises:
        UserError: See ``export_networks``.
    """
    metadata, config = trained.metadata, trained.config
    competition = get_competition(config.data.competition)
    own_step = type(competition).preprocess is not Competition.preprocess
    first = trained.networks[0]
    facts = {
        "run": trained.run.name,
        "folds": list(trained.folds),
        "competition": competition.name,
        "class_names": list(metadata["class_names"]),
        "rendered": metadata["rendered"],
        "test_time_augmentation": "none",
        "size": config.image.size,
        "modalities": list(metadata.get("modalities", [])),  # older runs have none
        "before": {
            "preprocess": (inspect.getdoc(competition.preprocess) or "").splitlines()[0] if own_step else None,
            **Preparation(config.image, competition.preprocess).settings(),
        },
        "inside": {
            "input_size": config.image.side,
            "mean": first.mean.flatten().tolist(),
            "std": first.std.flatten().tolist(),
        },
        "trained_commit": metadata["commit"],
    }
    return export_networks(trained.networks, config.image.size, out, facts)


def export_networks(networks: Sequence[Classifier], size: int, out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes networks as one ONNX file, once ONNX Runtime has given the logits that PyTorch gives.

    The graph takes ``images`` (n x C x S x S uint8, RGB, any n) and gives ``probabilities`` and ``logits`` (n x K
    float32, see ``MeanOfFolds``). It is float32 throughout, whatever precision the networks were trained in.

    Args:
        networks: At least one, of the same classes, on the CPU, in evaluation mode.
        size: S, pixels.
        out: The file to write.
        facts: What is known of the networks.

    Returns:
        What was written to ``description_path(out)``: the facts, and how the export was made and checked.

    Raises:
        UserError: The networks are larger than an ONNX file can be, PyTorch cannot export them, or what it exported
            computes something else. Nothing is written then.
    """
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name an ONNX file")
    whole = MeanOfFolds(networks).eval()
    stored = sum(value.numel() * value.element_size() for value in whole.state_dict().values())
    if stored > LARGEST:
        raise UserError(
            f"the weights are {stored / 1e9:.1f} GB, an ONNX file holds 2 GB; export fewer folds with --fold"
        )
    # Elsewhere first: beside the target, a refused export would leave the target's new folders behind
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2, desc="exporting", leave=False) as bar:
        temporary = Path(folder) / "model.onnx"
        _write_graph(whole, size, temporary)
        bar.update()
        difference = largest_difference(whole, OnnxClassifier(temporary))
        if not difference <= TOLERANCE:
            raise UserError(
                f"the ONNX graph's logits differ from PyTorch's by {difference:.1e} of their deviation, more than "
                f"{TOLERANCE:.0e}; nothing was written, use the network with scripts/predict.py"
            )
        description = {
            **facts,
            "inputs": {"images": ["n", networks[0].channels, size, size, "uint8"]},
            "outputs": {"probabilities": "softmax of the mean logits over the folds", "logits": "that mean"},
            "opset": OPSET,
            "largest_difference_to_pytorch": difference,
            "tolerance": TOLERANCE,
            "commit": git_commit(),
            "versions": {
                **library_versions(),
                **{name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")},
            },
        }
        with replacing(description_path(out)) as description_file, replacing(out) as model_file:
            shutil.copyfile(temporary, model_file)
            write_json(description_file, description)
    return description


def largest_difference(network: MeanOfFolds, exported: OnnxClassifier) -> float:
    """Compares logits on random bytes, one image and three at a time, and an all-black one among them.

    Args:
        network: In evaluation mode, on the CPU.
        exported: The same as an ONNX file.

    Returns:
        The largest difference of a logit, over the standard deviation of all of PyTorch's; 0 where none differs.
    """
    rng, shape = np.random.default_rng(0), exported.shape
    batches = [rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in (1, 3)]
    batches[1][-1] = 0
    with torch.inference_mode():
        expected = np.concatenate([network(torch.from_numpy(batch))[1].numpy() for batch in batches])
    found = np.concatenate([exported.logits(batch) for batch in batches])
    difference = float(np.abs(found - expected).max())
    return difference / float(expected.std()) if difference else 0.0


def _write_graph(network: MeanOfFolds, size: int, path: Path) -> None:
    """Has PyTorch's exporter write a graph for any number of images, without the notes it takes of our source files."""
    channels = network.channels
    example = torch.zeros(2, channels, size, size, dtype=torch.uint8)  # of one image, the exporter would take n for 1
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (example,),
                input_names=["images"],
                output_names=["probabilities", "logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                opset_version=OPSET,
                dynamo=True,  # the older exporter is deprecated
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        backbone = type(network.networks[0].backbone).__name__
        raise UserError(
            f"{backbone}: PyTorch cannot export this backbone to ONNX ({first_line(error.__cause__ or error)})"
        ) from None
    assert program is not None
    model = program.model_proto
    for noted in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del noted.metadata_props[:]  # stack traces with the paths of this machine
    onnx.save_model(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which tells its developers' business in warnings and log lines."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
