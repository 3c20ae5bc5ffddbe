"""ONNX export: PyTorch's numbers for any batch, what the description says, refusals, and the benchmark of both."""

import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import leukofold
from leukofold import exporting
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.exporting import OnnxClassifier, description_path, export_networks, export_run, load_folds
from leukofold.models.classifier import Classifier
from leukofold.models.weights import save_weights
from leukofold.runs import RunFolder

if TYPE_CHECKING:
    from tests.conftest import Commands, RunMaker

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SIZE = 32
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8)


def tiny_config(competition: str, **model: Any) -> Config:
    """A network of a few thousand weights, with the competition's own crop."""
    return Config.model_validate(
        {
            "data": {"competition": competition},
            "folds": {"count": 3},
            "image": {"size": SIZE, "crop": 200, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
            "model": {"backbone": "test_resnet", "pretrained": False, **model},
        }
    )


def tiny_network(config: Config, classes: int, seed: int) -> Classifier:
    """Random weights that no residual block is left out by."""
    torch.manual_seed(seed)
    network = Classifier(config.model, config.image, classes).eval()
    for name, value in network.named_parameters():
        if name.endswith("weight") and not value.any():
            nn.init.ones_(value)
    return network


def make_run(runs: "RunMaker", config: Config, classes: int, **changes: Any) -> tuple[RunFolder, list[Classifier]]:
    """A run of two complete folds, and the networks that it keeps."""
    run = runs.make("tiny", trained=(0, 2), config=config.resolved(), **changes).folder
    networks = [tiny_network(config, classes, seed) for seed in (0, 2)]
    for k, network in zip((0, 2), networks, strict=True):
        save_weights(network, run.fold(k).weights)
    return run, networks


def mean_logits(networks: list[Classifier], images: np.ndarray) -> np.ndarray:
    """PyTorch's own, averaged by numpy."""
    with torch.inference_mode():
        return np.asarray(np.mean([network(torch.from_numpy(images)).numpy() for network in networks], axis=0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Classifier]:
    """A binary network, and the file that it was exported to."""
    network = tiny_network(tiny_config("cnmc", one_logit=True, head="mlp", hidden=[8]), 2, 0)
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_networks([network], SIZE, out, {"class_names": ["hem", "all"]})
    return out, network


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_networks_graph_computes_what_pytorch_does(exported: tuple[Path, Classifier], n: int) -> None:
    classifier, expected = OnnxClassifier(exported[0], threads=1), mean_logits([exported[1]], IMAGES[:n])
    assert classifier.session.get_session_options().intra_op_num_threads == 1
    assert classifier.shape == (3, SIZE, SIZE)
    assert classifier.class_names == ["hem", "all"]
    logits = classifier.logits(IMAGES[:n])
    assert logits == pytest.approx(expected, abs=1e-5)
    assert (logits[:, 0] == 0).all()
    assert classifier.predict(IMAGES[:n])[:, 1] == pytest.approx(1 / (1 + np.exp(-expected[:, 1])), abs=1e-6)


def test_the_graph_is_a_valid_one_without_paths_of_the_machine_that_made_it(exported: tuple[Path, Classifier]) -> None:
    out = exported[0]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model.onnx.json"]
    onnx.checker.check_model(str(out), full_check=True)
    graph = onnx.load(out).graph
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"images": ["n", 3, SIZE, SIZE], "probabilities": ["n", 2], "logits": ["n", 2]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for folder in (Path(leukofold.__file__).parent, Path(torch.__file__).parent):
        assert str(folder).encode() not in out.read_bytes()


def test_the_command_exports_the_mean_of_a_runs_folds_and_describes_it(
    wbc_runs: "RunMaker", commands: "Commands"
) -> None:
    run, networks = make_run(wbc_runs, tiny_config("wbcbench"), 13, rendered=True)
    said = commands.succeed("export.py", "--run", "tiny", "--out", "new/cells.onnx")
    out = commands.cwd / "new" / "cells.onnx"
    megabytes = f"{out.stat().st_size / 1e6:.1f}"
    assert re.fullmatch(
        rf"new/cells\.onnx: {megabytes} MB, folds 0, 2, without test-time augmentation; differs from "
        r"PyTorch by \S+ of the logits' deviation \(at most 1e-04\); trained on RENDERED images, .* about patients\n",
        said,
    )
    assert sorted(path.name for path in out.parent.iterdir()) == ["cells.onnx", "cells.onnx.json"]
    classifier, expected = OnnxClassifier(out), mean_logits(networks, IMAGES)
    powers = np.exp(expected.astype(np.float64))
    assert classifier.logits(IMAGES) == pytest.approx(expected, abs=1e-5)
    assert classifier.predict(IMAGES) == pytest.approx(powers / powers.sum(axis=1, keepdims=True), abs=1e-6)
    description = json.loads(description_path(out).read_text())
    assert classifier.class_names == description["class_names"] == run.fold(0).metadata()["class_names"]
    told = {"run": "tiny", "folds": [0, 2], "rendered": True, "size": SIZE, "competition": "wbcbench", "opset": 20}
    assert description.items() >= {**told, "test_time_augmentation": "none"}.items()
    assert description["before"].items() >= {"preprocess": None, "crop": 200, "size": SIZE, "denoise": None}.items()
    assert description["inside"]["mean"] == pytest.approx([0.5, 0.4, 0.3])
    assert description["inside"]["std"] == pytest.approx([0.2, 0.2, 0.1])
    assert {"torch", "onnx", "onnxscript", "onnxruntime"} <= set(description["versions"])
    assert 0 <= description["largest_difference_to_pytorch"] <= description["tolerance"] == 1e-4
    message = "error: --run ../tiny: a run's name is a path below oof/, such as wbcbench/first"
    assert commands.refused("export.py", "--run", "../tiny", "--out", "other/cells.onnx") == message


def test_a_runs_description_tells_the_competitions_own_step(
    cnmc_runs: "RunMaker", exported: tuple[Path, Classifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(cnmc_runs, tiny_config("cnmc", one_logit=True, head="mlp", hidden=[8]), 2)
    trained = load_folds(run, [0])
    assert list(trained.folds) == [0]
    monkeypatch.setattr(exporting, "_write_graph", lambda _network, _size, path: shutil.copyfile(exported[0], path))
    description = export_run(trained, tmp_path / "model.onnx")  # seed 0, as the file that was exported before
    assert (tmp_path / "model.onnx").read_bytes() == exported[0].read_bytes()
    assert description["before"]["preprocess"].startswith("Cuts the centre 450 x 450 out of larger images")
    assert description["class_names"] == ["hem", "all"]
    other = tmp_path / "other" / "model.onnx"
    with pytest.raises(UserError, match=r"logits differ from PyTorch's by \S+ of their deviation, more than 1e-04"):
        export_run(load_folds(run, [2]), other)  # another network than the graph's
    assert not other.parent.exists()


def test_a_refused_export_leaves_an_earlier_one_as_it_was(
    exported: tuple[Path, Classifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, out = OnnxClassifier.logits, tmp_path / "model.onnx"
    out.write_bytes(b"of an earlier export")
    monkeypatch.setattr(exporting, "_write_graph", lambda _network, _size, path: shutil.copyfile(exported[0], path))
    for offset, refused in ((0.01, True), (float("nan"), True), (0.0, False)):
        monkeypatch.setattr(
            OnnxClassifier, "logits", lambda self, images, by=offset: honest(self, images) + np.float32(by)
        )
        if refused:
            with pytest.raises(UserError, match=r"logits differ from PyTorch's by .* more than 1e-04; nothing was"):
                export_networks([exported[1]], SIZE, out, {})
            assert list(tmp_path.iterdir()) == [out]
            assert out.read_bytes() == b"of an earlier export"
        else:
            export_networks([exported[1]], SIZE, out, {})
            assert out.read_bytes() == exported[0].read_bytes()


def test_the_difference_is_the_largest_over_the_deviation_of_all_logits() -> None:
    class Doubled:
        """Gives twice the logits."""

        shape = (3, SIZE, SIZE)

        def logits(self, images: np.ndarray) -> np.ndarray:
            seen.append(images)
            return 2 * mean_logits([network], images)

    seen: list[np.ndarray] = []
    network = tiny_network(tiny_config("cnmc"), 2, 0)
    found = exporting.largest_difference(exporting.MeanOfFolds([network]), Doubled())  # type: ignore[arg-type]
    expected = mean_logits([network], np.concatenate(seen))
    assert [len(images) for images in seen] == [1, 3]
    assert (seen[1][-1] == 0).all()
    assert found == pytest.approx(np.abs(expected).max() / expected.std(), rel=1e-4)


class Undecided(nn.Module):
    """A backbone whose layers depend on what is in the image, which no graph can tell."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns some features."""
        return images.mean(dim=(2, 3)) if images.sum() > 0 else images.amax(dim=(2, 3))


def test_what_cannot_be_one_file_or_one_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network(tiny_config("cnmc"), 2, 0)
    with pytest.raises(UserError, match=r"--out .*: is a folder; name an ONNX file"):
        export_networks([network], SIZE, tmp_path, {})
    network.backbone, network.head = Undecided(), nn.Linear(3, 2)
    with pytest.raises(UserError, match=r"^Undecided: PyTorch cannot export this backbone to ONNX \(.*\)$"):
        export_networks([network], SIZE, tmp_path / "model.onnx", {})
    monkeypatch.setattr(exporting, "LARGEST", 16)
    with pytest.raises(UserError, match=r"weights are 0.0 GB, an ONNX file holds 2 GB; export fewer folds with --fold"):
        export_networks([network], SIZE, tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())


def test_runs_without_networks_to_export_are_refused(wbc_runs: "RunMaker") -> None:
    with pytest.raises(UserError, match=r"nowhere: no run with a complete fold; train it with scripts/train_fold.py"):
        load_folds(RunFolder("nowhere", wbc_runs.root))
    bare = wbc_runs.make("bare", config=tiny_config("wbcbench").resolved()).folder
    with pytest.raises(UserError, match=r"bare/fold0/best.safetensors: not the weights of its run"):
        load_folds(bare)
    svm = Config.model_validate({"svm": {}, "inference": {"tta": "none"}})
    machine = wbc_runs.make("machine", config=svm.resolved()).folder
    with pytest.raises(UserError, match=r"machine: a support vector machine; only networks can be exported"):
        load_folds(machine)
    with pytest.raises(UserError, match=r"--fold 7: .*bare has complete folds 0, 1, 2 only"):
        load_folds(bare, [0, 7])
    (bare.fold(1).path / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"fold1/metadata.json: no such file; train that fold again"):
        load_folds(bare, [1])


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_description_that_is_missing_or_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: None)
    if content is not None:
        (tmp_path / "model.onnx.json").write_text(content)
    with pytest.raises(UserError, match=r"model.onnx.json: not the description of an ONNX file .*; export it again"):
        _ = OnnxClassifier(tmp_path / "model.onnx").class_names


@pytest.fixture
def one_core() -> Iterator[None]:
    """Leaves this process, and those that it starts, one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_the_benchmark_compares_both_on_a_configurations_network(
    one_core: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        f"data: {{competition: cnmc}}\nimage: {{size: {SIZE}}}\nmodel: {{backbone: test_resnet, one_logit: true}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "latency", "--config", "tiny.yaml", "--images", "30", "--out", "."]
    )
    opencv_threads = cv2.getNumThreads()
    runpy.run_path(str(SCRIPTS / "benchmark.py"), run_name="__main__")
    cv2.setNumThreads(opencv_threads)
    said = capsys.readouterr().out
    assert "test_resnet at 32 pixels, random weights, on 30 rendered cells of C-NMC 2019; ms per cell\n" in said
    number = r" +\d+\.\d"
    for way in ("PyTorch", "PyTorch, channels last", "ONNX Runtime"):
        assert re.search(
            rf"^  {way} +median{number}, 95 % within{number} \(read and prepare{number}, network{number}\); "
            rf"16 at once{number} \(network{number}\)$",
            said,
            re.MULTILINE,
        )
        assert re.search(rf"^  {way} \(CPU, 1 thread\) +(not )?met,{number} ms$", said, re.MULTILINE)
    differences = re.findall(r"(?:last|Runtime) / PyTorch .*; largest difference of a probability (\S+)$", said, re.M)
    assert len(differences) >= 2
    assert max(map(float, differences[:2])) < 1e-5
    if not torch.cuda.is_available():
        assert re.search(r"^GPU\n  PyTorch, ONNX Runtime +not measured: no GPU here; ", said, re.MULTILINE)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "latency.json"}
    saved = json.loads((tmp_path / "latency.json").read_text())
    assert saved["command"] == "python scripts/benchmark.py latency --config tiny.yaml --images 30 --out ."
    assert saved["machine"]["cores"] == 1
    assert [row["name"] for row in saved["results"]][:3] == ["PyTorch", "PyTorch, channels last", "ONNX Runtime"]
    assert f"median {saved['results'][0]['median_ms']:7.1f}," in said
