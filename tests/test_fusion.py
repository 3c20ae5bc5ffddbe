"""One network for several images of a cell: early fusion, MM-MIMO, distillation; the losses by their formulas."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from leukofold.blending.loading import average_logits, load_run
from leukofold.config import Config, ImageConfig, LossConfig, ModelConfig, SamplerConfig, load_config
from leukofold.embeddings import run_embeddings
from leukofold.errors import UserError
from leukofold.experiment import open_experiment
from leukofold.exporting import OnnxClassifier, export_run, load_folds
from leukofold.gradcam import grad_cam
from leukofold.models.classifier import Classifier, build_backbone
from leukofold.models.heads import ModalityHeads
from leukofold.models.trained import load_network
from leukofold.prediction import list_images, load_members, predict_images, seen_by
from leukofold.reopening import reopen
from leukofold.runs import RunFolder
from leukofold.sampling import EpochSampler
from leukofold.studies.confidences import ALL, head_confidences
from leukofold.training.distillation import Distillation, Teacher, load_teachers
from leukofold.training.fold import train_folds
from leukofold.training.launch import make_inference_accelerator
from leukofold.training.losses import EachHead, build_loss, soft_targets

if TYPE_CHECKING:
    from tests.conftest import MultimodalInput

SMALL = {"backbone": "test_resnet", "pretrained": False, "dropout": 0.0}
SEEN = ("Fluorescent", "Color1", "Color2")


def network_of(modalities: int, seed: int = 0, **model: object) -> Classifier:
    """A small network with known weights."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate({**SMALL, **model})
    return Classifier(config, ImageConfig(size=32), classes=5, modalities=modalities).eval()


def random_images(n: int, modalities: int, seed: int = 0) -> torch.Tensor:
    """N cells."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3 * modalities, 32, 32), dtype=torch.uint8, generator=generator)


# --- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "shufflenetv2_x0_5", "small_cnn"])
def test_any_backbone_takes_the_colours_of_all_images(backbone: str) -> None:
    network = network_of(4, backbone=backbone) if backbone != "test_vit" else None
    if network is None:
        config = ModelConfig.model_validate({**SMALL, "backbone": backbone})
        network = Classifier(config, ImageConfig(size=160), classes=5, modalities=4).eval()
    side = network.side
    assert network.channels == 12
    images = torch.randint(0, 256, (2, 12, side, side), dtype=torch.uint8)
    assert network(images).shape == (2, 5)
    assert torch.equal(network.mean[:, :3], network.mean[:, 9:])
    normalised = network.normalise(images)
    assert torch.allclose(normalised[0, 7], (images[0, 7] / 255 - network.mean[0, 1]) / network.std[0, 1])


def test_first_convolutions_are_widened_as_timm_widens_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth")}
    expected = timm.create_model("test_resnet", True, pretrained_cfg_overlay=overlay, in_chans=12, num_classes=0)
    config = ModelConfig.model_validate({**SMALL, "pretrained": tmp_path / "w.safetensors"})
    ours = build_backbone(config, 32, 12)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    narrow, wide = source.get_parameter("conv1.0.weight"), ours.conv1[0].weight
    assert torch.allclose(wide, narrow.repeat(1, 4, 1, 1) / 4)
    # equal images give what one of them gave
    image = torch.rand(2, 3, 32, 32)
    plain = build_backbone(config, 32, 3).eval()
    assert torch.allclose(ours.eval()(image.repeat(1, 4, 1, 1)), plain(image), atol=1e-5)
    # weights of as many channels stay as they are
    save_file(ours.state_dict(), tmp_path / "wide.safetensors")
    again = build_backbone(config.model_copy(update={"pretrained": tmp_path / "wide.safetensors"}), 32, 12)
    assert torch.equal(again.conv1[0].weight, wide)


def test_heads_answer_apart_in_training_and_together_for_a_cell() -> None:
    network = network_of(3, fusion="mimo")
    heads = cast(ModalityHeads, network.head)
    assert len(heads.heads) == 3
    features = network.embed(random_images(4, 3))
    each = heads.each(features)
    assert each.shape == (4, 3, 5)
    for k, head in enumerate(heads.heads):
        assert torch.equal(each[:, k], head(features))
    together = network(random_images(4, 3))
    expected = softmax(each.detach().numpy(), axis=2).mean(axis=1)  # the mean of the outputs
    assert softmax(together.detach().numpy(), axis=1) == pytest.approx(expected, abs=1e-6)
    assert network.train()(random_images(4, 3)).shape == (4, 3, 5)


def test_heads_for_one_image_are_refused() -> None:
    with pytest.raises(UserError, match="mimo is for several images of a cell, and there is one; take early"):
        network_of(1, fusion="mimo")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": {"fusion": "mimo"}, "mixing": {"mixup": 0.5}}, "mimo trains on independent cells"),
        ({"svm": {}, "inference": {"tta": "none"}, "distillation": {"teachers": ["a"]}}, "distillation: teachers see"),
        ({"distillation": {"teachers": ["a"], "temperature": 0}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(given)


# --- sampling --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(1, 8), st.integers(2, 4), st.integers(0, 2**31), st.booleans())
def test_each_place_draws_its_own_cells(n: int, batch: int, places: int, seed: int, weighted: bool) -> None:
    labels = np.arange(n) % 3
    config = SamplerConfig(kind="effective_number" if weighted else "uniform")

    def epoch(number: int) -> list[list[tuple[tuple[int, int], ...]]]:
        sampler = EpochSampler(labels, 3, batch, 1, config, seed, places)
        sampler.start_epoch(number)
        return list(sampler)

    batches = epoch(2)
    assert batches == epoch(2)
    keys = [key for part in batches for key in part]
    assert all(len(part) == batch for part in batches)
    assert all(len(key) == places for key in keys)
    seeds = [seed for key in keys for _, seed in key]
    assert len(set(seeds)) == len(seeds)
    if not weighted and n >= batch:  # every image of every modality once at most
        for place in range(places):
            rows = [key[place][0] for key in keys]
            assert len(set(rows)) == len(rows)


def test_places_are_independent() -> None:
    labels = np.arange(4000) % 4
    sampler = EpochSampler(labels, 4, 100, 1, SamplerConfig(kind="uniform"), 0, 2)
    sampler.start_epoch(1)
    keys = [key for part in sampler for key in part]
    table = np.zeros((4, 4))
    same = 0
    for (a, _), (b, _) in keys:
        table[labels[a], labels[b]] += 1
        same += a == b
    assert same <= 5  # one is expected
    expected = len(keys) / 16
    assert ((table - expected) ** 2 / expected).sum() < 27.9  # chi square, 9 degrees of freedom, p > .001


def test_one_place_draws_what_it_always_drew() -> None:
    labels = np.arange(20) % 3
    sampler = EpochSampler(labels, 3, 4, 1, SamplerConfig(kind="uniform"), 7)
    sampler.start_epoch(3)
    rng = np.random.default_rng([7, 3])
    rows, seeds = rng.permutation(20), rng.integers(0, 2**63, size=20)
    assert [key for part in sampler for key in part] == list(zip(rows.tolist(), seeds.tolist(), strict=True))


# --- losses ----------------------------------------------------------------------------------------


def test_the_loss_of_mimo_is_the_sum_of_the_heads_cross_entropies() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 4, 5)), rng.integers(0, 5, (6, 4))
    loss = EachHead(build_loss(LossConfig(kind="cross_entropy"), labels.ravel(), 5))
    found = loss(torch.from_numpy(logits), soft_targets(torch.from_numpy(labels), 5, 0.0))
    by_hand = -sum(
        np.mean([log_softmax(logits[n, i])[labels[n, i]] for n in range(6)]) for i in range(4)
    )  # eq. 1 of the paper, each term a mean over the batch
    assert float(found) == pytest.approx(by_hand)


def teachers_of(networks: list[Classifier]) -> list[Teacher]:
    """Each sees one image."""
    return [Teacher(f"t{k}", network, (k,), f"d{k}") for k, network in enumerate(networks)]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_t_squared_times_the_sum_of_kl_divergences(temperature: float) -> None:
    networks = [network_of(1, seed) for seed in (1, 2, 3)]
    images, rng = random_images(4, 3, seed=5), np.random.default_rng(1)
    logits = rng.normal(size=(4, 3, 5)) * 3
    distillation = Distillation(teachers_of(networks), True, 3, temperature)
    targets = distillation.targets(images)
    taught = np.stack(
        [network(images[:, 3 * k : 3 * k + 3]).detach().numpy() for k, network in enumerate(networks)], axis=1
    )
    assert not targets.requires_grad
    p, q = softmax(taught / temperature, axis=2), softmax(logits / temperature, axis=2)
    assert targets.numpy() == pytest.approx(p, abs=1e-6)
    by_hand = temperature**2 * rel_entr(p, q).sum(axis=(1, 2)).mean()  # eq. 2 to 4 of the paper
    assert float(distillation.loss(torch.from_numpy(logits), targets)) == pytest.approx(by_hand, rel=1e-5)


def test_one_head_is_taught_by_the_late_fusion_of_its_teachers() -> None:
    networks = [network_of(1, 1), network_of(2, 2)]
    teachers = [Teacher("a", networks[0], (1,), ""), Teacher("b", networks[1], (2, 0), "")]
    images, temperature = random_images(3, 3, seed=2), 2.5
    distillation = Distillation(teachers, False, 3, temperature)
    a = networks[0](images[:, 3:6]).detach().numpy()
    b = networks[1](torch.cat([images[:, 6:9], images[:, 0:3]], dim=1)).detach().numpy()
    late = (softmax(a / temperature, axis=1) + softmax(b / temperature, axis=1)) / 2
    assert distillation.targets(images)[:, 0].numpy() == pytest.approx(late, abs=1e-6)
    logits = torch.randn(3, 5, requires_grad=True)
    distillation.loss(logits, distillation.targets(images)).backward()  # type: ignore[no-untyped-call]
    # the same gradient as the sum over the teachers, divided by their number
    other = logits.detach().clone().requires_grad_()
    log_q = (other / temperature).log_softmax(1)
    both = [F.kl_div(log_q, torch.from_numpy(softmax(t / temperature, axis=1)), reduction="batchmean") for t in (a, b)]
    (temperature**2 * torch.stack(both).sum() / 2).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.numpy() == pytest.approx(other.grad, abs=1e-6)


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    network = network_of(2, 4)
    distillation = Distillation([Teacher("t", network, (0, 1), "")], False, 2, 3.0)
    images = random_images(3, 2)
    loss = distillation.loss(network(images).detach(), distillation.targets(images))
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert distillation.digests == {"t": ""}


def test_probabilities_are_averaged_even_where_they_are_tiny(multimodal_runs: Runs) -> None:
    runs = [load_run(RunFolder(name, multimodal_runs.root)).oof for name in SEEN]
    found = average_logits(runs, "probabilities")
    expected = np.mean([softmax(run.logits.astype(np.float64), axis=1) for run in runs], axis=0)
    assert softmax(found.logits, axis=1) == pytest.approx(expected, abs=1e-6)
    assert found.logits == pytest.approx(np.log(expected), abs=1e-4)
    assert average_logits(runs).logits == pytest.approx(np.mean([run.logits for run in runs], axis=0), abs=1e-6)


# --- training --------------------------------------------------------------------------------------


class Runs:
    """Short trainings on drawn cells."""

    def __init__(self, input_root: Path, work: Path) -> None:
        self.input, self.work, self.root = input_root, work, work / "oof"

    def config(self, *changes: str) -> Config:
        """The configuration of one run."""
        plain = [
            "data.competition=multimodal",
            f"data.root={self.input}",
            f"data.cache={self.work / 'cache'}",
            "data.workers=0",
            "folds.count=2",
            "image.size=32",
            "image.augment=[{name: RandAugment, num_ops: 2, magnitude: 18, p: 1.0}]",
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "training.epochs=2",
            "training.batch_size=10",
            "training.ema_decay=0",
            "optimizer.lr=2e-3",
            "inference.tta=none",
        ]
        return load_config([], [*plain, *changes])

    def train(self, name: str, *changes: str, folds: tuple[int, ...] = (0,), resume: bool = False) -> RunFolder:
        """Trains some folds."""
        run = RunFolder(name, self.root)
        train_folds(self.config(*changes), run, folds, resume=resume, debug=False)
        return run


TAUGHT = "distillation.teachers=[Fluorescent, Color1, Color2]"


@pytest.fixture(scope="module")
def multimodal_runs(drawn_multimodal: MultimodalInput, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The trainings, once for all tests here; read only."""
    runs = Runs(drawn_multimodal.root, tmp_path_factory.mktemp("fusion"))
    for name in SEEN:
        runs.train(name, f"data.modalities=[{name}]")
    runs.train("early")
    runs.train("mimo", "model.fusion=mimo")
    runs.train("mimo_kd", "model.fusion=mimo", TAUGHT)
    runs.train("early_kd", TAUGHT)
    return runs


def test_runs_say_which_images_they_see_and_who_taught_them(multimodal_runs: Runs) -> None:
    found = {name: RunFolder(name, multimodal_runs.root).fold(0).metadata() for name in ("Color1", "mimo_kd", "early")}
    assert [found[name]["modalities"] for name in found] == [["Color1"], list(SEEN), list(SEEN)]
    assert found["early"]["teachers"] == {}
    assert list(found["mimo_kd"]["teachers"]) == list(SEEN)
    assert all(len(digest) == 64 for digest in found["mimo_kd"]["teachers"].values())
    assert len(found["mimo_kd"]["preprocessing"]["mean"]) == 9


def test_teachers_change_the_training(multimodal_runs: Runs) -> None:
    logits = {
        name: load_run(RunFolder(name, multimodal_runs.root)).oof.logits
        for name in ("mimo", "mimo_kd", "early", "early_kd")
    }
    assert not np.allclose(logits["mimo"], logits["mimo_kd"])
    assert not np.allclose(logits["early"], logits["early_kd"])
    losses = {name: pd.read_csv(RunFolder(name, multimodal_runs.root).fold(0).history).loss for name in logits}
    assert (losses["mimo_kd"] > losses["mimo"]).all()  # the same start, and a divergence on top


def test_out_of_fold_logits_are_those_of_the_kept_network(multimodal_runs: Runs) -> None:
    for name in ("Color2", "mimo"):
        run = RunFolder(name, multimodal_runs.root)
        loaded = load_run(run)
        reopened = reopen(loaded)
        network = load_network(reopened.config, run.fold(0), 5, torch.device("cpu"))
        images = reopened.images()
        pixels = images.channels(images.rows(loaded.oof.image_id.tolist())).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            assert network(torch.from_numpy(pixels.copy())).numpy() == pytest.approx(loaded.oof.logits, abs=1e-4)


def test_the_same_training_gives_the_same_bits_and_a_resumed_one_too(multimodal_runs: Runs) -> None:
    expected = load_run(RunFolder("mimo_kd", multimodal_runs.root)).oof.logits
    settings = ("model.fusion=mimo", TAUGHT)
    again = multimodal_runs.train("again", *settings)
    assert np.array_equal(load_run(again).oof.logits, expected)
    (again.fold(0).path / "metrics.json").unlink()
    state = torch.load(again.fold(0).state, weights_only=True)
    assert list(state["teachers"]) == list(SEEN)
    multimodal_runs.train("again", *settings, resume=True)
    assert np.array_equal(load_run(again).oof.logits, expected)


def test_a_resumed_training_keeps_its_teachers(multimodal_runs: Runs) -> None:
    multimodal_runs.train("teacher", "data.modalities=[Color1]")
    run = multimodal_runs.train("pupil", "distillation.teachers=[teacher]")
    (run.fold(0).path / "metrics.json").unlink()
    multimodal_runs.train("teacher", "data.modalities=[Color1]", "training.seed=1")
    with pytest.raises(UserError, match="its teachers were trained anew since; train it afresh, without --resume"):
        multimodal_runs.train("pupil", "distillation.teachers=[teacher]", resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["distillation.teachers=[nobody]"],
            "nobody: its fold 0 is not trained; train that run first",
        ),
        (
            ["model.fusion=mimo", "distillation.teachers=[Color1, Color2]"],
            "sees that alone; none sees Fluorescent",
        ),
        (["model.fusion=mimo", f"{TAUGHT[:-1]}, early]"], "which sees that alone; name no more than these"),
        (["distillation.teachers=[Color1]", "image.size=40"], "image.size is 32 there and 40 here"),
        (["distillation.teachers=[Color1]", "data.modalities=[Color2]"], "sees Color1, which this run does not"),
        (
            ["distillation.teachers=[Color1]", "folds.seed=3"],
            "folds.seed is 0 there and 3 here; a teacher may not",
        ),
        (["distillation.teachers=[Color1]", "folds.left_out=1"], "folds.left_out is None there and 1 here"),
    ],
)
def test_teachers_that_are_not_fit_are_refused(multimodal_runs: Runs, changes: list[str], said: str) -> None:
    config = multimodal_runs.config(*changes)
    experiment = open_experiment(config, RunFolder("new", multimodal_runs.root), progress=False)
    with pytest.raises(UserError, match=said) as caught:
        load_teachers(experiment, 0, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label_lists": "all folds"}, "was trained by lists of label issues that know the held-out labels"),
        ({"data_fingerprint": "0"}, "of different data_fingerprint; name a run of the same input"),
        ({"class_names": ["a"]}, "of different class_names"),
        ({"debug": True}, "a debug run; train it whole first"),
        ({"folds": [0]}, "60 images are in other folds there, c0 first"),
    ],
)
def test_teachers_of_another_making_are_refused(multimodal_runs: Runs, changes: dict[str, object], said: str) -> None:
    shutil.copytree(multimodal_runs.root / "Color1", multimodal_runs.root / "changed", dirs_exist_ok=True)
    path = multimodal_runs.root / "changed" / "fold0" / "metadata.json"
    if "folds" in changes:
        folds = pd.read_csv(multimodal_runs.root / "changed" / "folds.csv")
        folds.assign(fold=1 - folds.fold).to_csv(multimodal_runs.root / "changed" / "folds.csv", index=False)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    config = multimodal_runs.config("distillation.teachers=[changed]")
    experiment = open_experiment(config, RunFolder("new", multimodal_runs.root), progress=False)
    with pytest.raises(UserError, match=f"distillation.teachers: changed: {said}"):
        load_teachers(experiment, 0, torch.device("cpu"))


def test_a_debug_run_may_be_taught_by_debug_runs(multimodal_runs: Runs) -> None:
    shutil.copytree(multimodal_runs.root / "Color1", multimodal_runs.root / "small-debug", dirs_exist_ok=True)
    config = multimodal_runs.config("distillation.teachers=[small]")
    for debug in (True, False):
        run = RunFolder("new", multimodal_runs.root)
        experiment = replace(open_experiment(config, run, progress=False), debug=debug)
        if debug:
            teachers = load_teachers(experiment, 0, torch.device("cpu"))
            assert teachers is not None
            assert list(teachers.digests) == ["small-debug"]
        else:
            with pytest.raises(UserError, match="small: its fold 0 is not trained"):
                load_teachers(experiment, 0, torch.device("cpu"))


def test_without_teachers_there_is_no_distillation(multimodal_runs: Runs) -> None:
    experiment = open_experiment(multimodal_runs.config(), RunFolder("new", multimodal_runs.root), progress=False)
    assert load_teachers(experiment, 0, torch.device("cpu")) is None


def test_a_machine_measures_one_image_of_a_cell(multimodal_runs: Runs) -> None:
    with pytest.raises(UserError, match="svm: one image of a cell is measured; choose one of Fluorescent"):
        multimodal_runs.train("machine", "svm={}")
    run = multimodal_runs.train("machine", "svm={}", "data.modalities=[Color2]")
    assert load_run(run).oof.logits.shape[1] == 5


# --- what is made of runs --------------------------------------------------------------------------


def test_heads_confidences_are_of_what_each_is_fed(multimodal_runs: Runs) -> None:
    reopened = reopen(load_run(RunFolder("mimo", multimodal_runs.root)))
    panels = head_confidences(reopened)
    assert list(panels) == [ALL, "Fluorescent alone", "Color1 alone", "Color2 alone"]
    network = cast(Classifier, reopened.network(0, torch.device("cpu")))
    images = reopened.images()
    pixels = torch.from_numpy(
        images.channels(images.rows(reopened.cells.image_id.tolist())).transpose(0, 3, 1, 2).copy()
    )
    color1 = pixels[:, 3:6].repeat(1, 3, 1, 1)
    heads = cast(ModalityHeads, network.head)
    for name, fed in ((ALL, pixels), ("Color1 alone", color1)):
        with torch.inference_mode():
            expected = softmax(heads.each(network.embed(fed)).numpy(), axis=2).max(axis=2)
        assert panels[name] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="early: has one head"):
        head_confidences(reopen(load_run(RunFolder("early", multimodal_runs.root))))


def test_any_cells_are_predicted_from_folders_or_a_list(multimodal_runs: Runs, tmp_path: Path) -> None:
    device = torch.device("cpu")
    members = load_members(["mimo", "Color2"], device, multimodal_runs.root)
    assert seen_by(members) == list(SEEN)
    files = list_images(multimodal_runs.input, SEEN)
    assert files.columns.tolist() == list(SEEN)
    logits = predict_images(members, files, make_inference_accelerator("no"), 16, 0)
    oof = {name: load_run(RunFolder(name, multimodal_runs.root)).oof for name in ("mimo", "Color2")}
    row_of = {Path(path).stem: row for row, path in enumerate(files.Color1)}
    rows = [row_of[image_id] for image_id in oof["mimo"].image_id]
    expected = (oof["mimo"].logits + oof["Color2"].logits) / 2
    assert logits[rows] == pytest.approx(expected, abs=1e-4)
    listed = pd.read_csv(multimodal_runs.input / "cells.csv").head(3)
    for name in SEEN:
        listed[name] = [(multimodal_runs.input / path).as_posix() for path in listed[name]]
    listed.to_csv(tmp_path / "list.csv", index=False)
    few = list_images(tmp_path / "list.csv", SEEN)
    assert predict_images(members, few, make_inference_accelerator("no"), 16, 0) == pytest.approx(
        logits[[row_of[Path(path).stem] for path in few.Color1]], abs=1e-4
    )
    with pytest.raises(UserError, match=r"list.csv: no column 'Phase', only cell_id"):
        list_images(tmp_path / "list.csv", ["Phase"])
    listed.assign(Color2=["nowhere.png", *listed.Color2[1:]]).to_csv(tmp_path / "list.csv", index=False)
    with pytest.raises(UserError, match=r"list.csv: 1 of 3 cells lack an image: .*c0.png: no image of Color2"):
        list_images(tmp_path / "list.csv", SEEN)


def test_embeddings_and_heat_are_of_all_images_together(multimodal_runs: Runs) -> None:
    reopened = reopen(load_run(RunFolder("mimo", multimodal_runs.root)))
    images, network = reopened.images(), cast(Classifier, reopened.network(0, torch.device("cpu")))
    pixels = images.channels(images.rows(reopened.cells.image_id.tolist()[:3]))
    with torch.inference_mode():
        expected = network.embed(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    assert run_embeddings(reopened)[:3] == pytest.approx(expected, abs=1e-5)
    heat = grad_cam(network, pixels, np.array([0, 1, 2]))
    assert heat.shape == (3, 32, 32)
    assert heat.max() <= 1


def test_a_network_of_several_images_is_exported(multimodal_runs: Runs, tmp_path: Path) -> None:
    trained = load_folds(RunFolder("mimo_kd", multimodal_runs.root))
    facts = export_run(trained, tmp_path / "m.onnx")
    assert facts["modalities"] == list(SEEN)
    assert facts["inputs"]["images"] == ["n", 9, 32, 32, "uint8"]
    exported = OnnxClassifier(tmp_path / "m.onnx", threads=1)
    assert exported.shape == (9, 32, 32)
    images = random_images(3, 3, seed=9)
    with torch.inference_mode():
        expected = trained.networks[0](images).numpy()
    assert exported.logits(images.numpy()) == pytest.approx(expected, abs=1e-4)


def test_modules_of_heads_are_trained_together() -> None:
    network = network_of(2, fusion="mimo").train()
    loss = EachHead(nn.CrossEntropyLoss())(
        network(random_images(4, 2)), soft_targets(torch.zeros(4, 2, dtype=torch.long), 5, 0)
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
