"""Training a fold for real, on rendered cells: what it writes, repeats, resumes and refuses."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score

from leukofold.blending.loading import load_run
from leukofold.competitions import get_competition
from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.folds import assign_folds
from leukofold.images.preparing import Preparation
from leukofold.images.reading import read_image
from leukofold.models.classifier import Classifier
from leukofold.runs import RunFolder
from leukofold.training.fold import train_folds
from leukofold.training.trainer import Trainer


def make_config(rendered_wbcbench: Path, tmp_path: Path, **sections: dict[str, Any]) -> Config:
    """The smallest configuration that trains; sections are laid over it."""
    base: dict[str, dict[str, Any]] = {
        "data": {"root": rendered_wbcbench, "cache": tmp_path / "cache", "workers": 0},
        "folds": {"count": 2},
        "image": {"size": 32},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "training": {"epochs": 3, "batch_size": 16, "ema_decay": 0.5},
        "optimizer": {"lr": 1e-3},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return Config.model_validate(base)


def oof_bits(run: RunFolder) -> dict[str, bytes]:
    """The arrays of fold 0's predictions, byte for byte."""
    found: dict[str, bytes] = {}
    for kind in ("oof", "test"):
        with np.load(run.fold(0).path / f"{kind}.npz", allow_pickle=False) as arrays:
            found |= {f"{kind}.{name}": arrays[name].tobytes() for name in arrays.files}
    return found


def test_a_run_leaves_everything_that_its_folder_promises(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("tiny", tmp_path / "oof")
    config = make_config(rendered_wbcbench, tmp_path)
    train_folds(config, run, [0, 1], resume=False, debug=False)
    table = get_competition("wbcbench").read(rendered_wbcbench)
    split = pd.read_csv(run.folds_csv, dtype={"image_id": str})
    for k in (0, 1):
        folder = run.fold(k)
        with np.load(folder.path / "oof.npz", allow_pickle=False) as oof:
            assert sorted(oof.files) == [
                "class_names",
                "group",
                "image_id",
                "is_external",
                "label",
                "logits",
                "single_view",
                "split",
            ]
            assert oof["logits"].dtype == np.float32
            assert oof["image_id"].tolist() == split.image_id[split.fold == k].tolist()
            labels, predictions = oof["label"], oof["logits"].argmax(axis=1)
        with np.load(folder.path / "test.npz", allow_pickle=False) as test:
            assert "label" not in test.files
            assert test["image_id"].tolist() == table.test.image_id.tolist()
            assert test["logits"].shape == (len(table.test), 13)
        expected = f1_score(labels, predictions, labels=range(13), average="macro", zero_division=0)
        assert folder.metrics()["competition_rows"]["macro_f1"] == pytest.approx(expected)
        assert folder.metrics()["rendered"] is True
        history = pd.read_csv(folder.history)
        assert history.epoch.tolist() == [1, 2, 3]
        assert int(history.macro_f1.to_numpy().argmax()) + 1 == folder.metrics()["best_epoch"]
        assert all("module." not in key and "_orig_mod" not in key for key in load_file(folder.weights))
    loaded = load_run(run)
    assert sorted(loaded.oof.image_id) == sorted(table.labelled.image_id)
    metadata = json.loads((run.fold(1).path / "metadata.json").read_text())
    assert metadata["class_names"] == list(table.class_names)
    assert metadata["config"] == config.resolved()
    assert metadata["data_fingerprint"] == table.fingerprint()
    assert set(metadata["versions"]) >= {"python", "torch", "timm", "albumentations"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_training_learns_what_chance_cannot(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("learns", tmp_path / "oof")
    train_folds(
        make_config(rendered_wbcbench, tmp_path, training={"epochs": 8}, optimizer={"lr": 5e-3}),
        run,
        [0],
        resume=False,
        debug=False,
    )
    history = pd.read_csv(run.fold(0).history)
    assert history.loss.iloc[-1] < 0.6 * history.loss.iloc[0]
    assert history.lr.is_monotonic_decreasing  # the cosine


def test_the_same_command_gives_the_same_bits_with_any_number_of_workers(
    rendered_wbcbench: Path, tmp_path: Path
) -> None:
    runs: list[dict[str, bytes]] = []
    for workers in (0, 0, 1, 2):
        run = RunFolder(f"run{len(runs)}", tmp_path / "oof")
        config = make_config(
            rendered_wbcbench,
            tmp_path,
            data={"workers": workers},
            model={"dropout": 0.2, "drop_path": 0.1},
            sampler={"kind": "effective_number"},
            mixing={"cutmix": 0.4, "mixup": 0.4},
            training={"epochs": 2, "accumulate": 2, "ema_decay": 0.5},
        )
        train_folds(config, run, [0], resume=False, debug=False)
        history = pd.read_csv(run.fold(0).history).drop(columns=["images_per_second", "waiting", "seconds"])
        runs.append(
            {**oof_bits(run), "weights": run.fold(0).weights.read_bytes(), "history": history.to_csv().encode()}
        )
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_another_seed_gives_other_logits(rendered_wbcbench: Path, tmp_path: Path) -> None:
    bits = []
    for seed in (0, 1):
        run = RunFolder(f"seed{seed}", tmp_path / "oof")
        train_folds(
            make_config(rendered_wbcbench, tmp_path, training={"seed": seed}), run, [0], resume=False, debug=False
        )
        bits.append(oof_bits(run))
    assert bits[0]["oof.image_id"] == bits[1]["oof.image_id"]
    assert bits[0]["oof.logits"] != bits[1]["oof.logits"]


def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(
    rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(rendered_wbcbench, tmp_path)
    whole, broken = RunFolder("whole", tmp_path / "oof"), RunFolder("broken", tmp_path / "oof")
    train_folds(config, whole, [0], resume=False, debug=False)
    epoch = Trainer._epoch

    def interrupted(trainer: Trainer) -> None:
        if trainer.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_folds(config, broken, [0], resume=False, debug=False)
    assert not broken.fold(0).complete
    train_folds(config, broken, [0], resume=True, debug=False)
    assert "resumed after epoch 2" in capsys.readouterr().out
    assert oof_bits(broken) == oof_bits(whole)
    assert pd.read_csv(broken.fold(0).history).epoch.tolist() == [1, 2, 3]


def test_resume_skips_a_complete_fold(
    rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = RunFolder("done", tmp_path / "oof"), make_config(rendered_wbcbench, tmp_path)
    train_folds(config, run, [0], resume=False, debug=False)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    train_folds(config, run, [0], resume=True, debug=False)
    assert "fold 0: complete already, skipped" in capsys.readouterr().out


def test_patience_ends_training_early(rendered_wbcbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leukofold.training.trainer.score", lambda labels, logits: {"macro_f1": 0.5})
    run = RunFolder("patient", tmp_path / "oof")
    train_folds(make_config(rendered_wbcbench, tmp_path, training={"epochs": 9, "patience": 2}), run, [0], False, False)
    assert run.fold(0).metrics()["epochs"] == 3
    assert run.fold(0).metrics()["best_epoch"] == 1


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(rendered_wbcbench: Path, tmp_path: Path) -> None:
    logits = []
    for parts in (1, 2):
        run = RunFolder(f"parts{parts}", tmp_path / "oof")
        config = make_config(
            rendered_wbcbench,
            tmp_path,
            model={"backbone": "test_vit", "dropout": 0.0},  # no batch statistics, which parts would change
            training={"epochs": 1, "accumulate": parts},
        )
        train_folds(config, run, [0], resume=False, debug=False)
        logits.append(run.fold(0).predictions("oof").logits)
    assert logits[0] == pytest.approx(logits[1], abs=2e-4)


def test_without_moving_average_the_network_itself_is_kept(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("plain", tmp_path / "oof")
    config = make_config(
        rendered_wbcbench, tmp_path, training={"epochs": 1, "ema_decay": 0.0}, sampler={"kind": "uniform"}
    )
    train_folds(config, run, [0], resume=False, debug=False)
    state = torch.load(run.fold(0).state, weights_only=True)
    assert state["ema"] is None
    kept = load_file(run.fold(0).weights)
    assert all(torch.equal(value, kept[key]) for key, value in state["model"].items())


def test_debug_runs_a_little_of_everything(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("tiny-debug", tmp_path / "oof")
    train_folds(
        make_config(rendered_wbcbench, tmp_path, training={"epochs": 50}), run, [0, 1], resume=False, debug=True
    )
    assert [run.fold(k).metrics()["epochs"] for k in (0, 1)] == [2, 2]
    assert len(run.fold(0).predictions("oof").image_id) == 32
    assert run.fold(0).metadata()["debug"] is True


def test_tensorboard_is_written_on_request(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("board", tmp_path / "oof")
    config = make_config(rendered_wbcbench, tmp_path, training={"epochs": 1, "trackers": ["tensorboard"]})
    train_folds(config, run, [0], resume=False, debug=False)
    assert list(run.path.rglob("events.out.tfevents.*"))
    assert run.fold(0).history.exists()


def test_a_run_takes_no_fold_of_another_configuration(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("mixed", tmp_path / "oof")
    train_folds(make_config(rendered_wbcbench, tmp_path, training={"epochs": 1}), run, [0], resume=False, debug=False)
    with pytest.raises(UserError, match=r"another training.epochs \(1, now 2\); name another run with --run"):
        train_folds(
            make_config(rendered_wbcbench, tmp_path, training={"epochs": 2}), run, [1], resume=False, debug=False
        )
    with pytest.raises(UserError, match=r"another training.epochs \(1, now 2\)"):
        train_folds(
            make_config(rendered_wbcbench, tmp_path, training={"epochs": 2}), run, [0], resume=True, debug=False
        )


def test_a_group_on_both_sides_is_refused(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run, config = RunFolder("leak", tmp_path / "oof"), make_config(rendered_wbcbench, tmp_path, training={"epochs": 1})
    train_folds(config, run, [0], resume=False, debug=False)
    split = pd.read_csv(run.folds_csv, dtype=str)
    split.loc[split.index[split.group == split.group[0]][0], "fold"] = str(1 - int(split.fold[0]))
    split.to_csv(run.folds_csv, index=False)
    with pytest.raises(UserError, match=f"group {split.group[0]} is in 2 folds .* would leak patients"):
        train_folds(config, run, [0], resume=False, debug=False)


def test_a_fold_that_is_replaced_alone_gets_the_new_split(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run, splits = RunFolder("seeds", tmp_path / "oof"), []
    for seed in (0, 7):
        config = make_config(rendered_wbcbench, tmp_path, training={"epochs": 1}, folds={"count": 2, "seed": seed})
        train_folds(config, run, [0], resume=False, debug=False)
        table = get_competition("wbcbench").read(rendered_wbcbench)
        assert (
            run.split().fold.tolist()
            == assign_folds(table.labelled, table.labelled.group.to_numpy(), config.folds).tolist()
        )
        splits.append(run.fold(0).predictions("oof").image_id.tolist())
    assert splits[0] != splits[1]
    with pytest.raises(UserError, match=r"another folds.seed \(7, now 0\)"):
        train_folds(
            make_config(rendered_wbcbench, tmp_path, training={"epochs": 1}), run, [1], resume=False, debug=False
        )


def test_the_kept_weights_give_the_saved_logits(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run = RunFolder("kept", tmp_path / "oof")
    config = make_config(rendered_wbcbench, tmp_path, inference={"tta": "none"}, optimizer={"lr": 5e-3})
    train_folds(config, run, [0], resume=False, debug=False)
    network = Classifier(config.model, config.image, 13).eval()
    network.load_state_dict(load_file(run.fold(0).weights))
    competition, oof = get_competition("wbcbench"), run.fold(0).predictions("oof")
    frame = competition.read(rendered_wbcbench).labelled.set_index("image_id").loc[oof.image_id].reset_index()
    preparation = Preparation(config.image, competition.preprocess)
    images = np.stack([preparation(read_image(path)) for path in frame.path])
    with torch.inference_mode():
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert oof.logits == pytest.approx(logits.numpy(), abs=1e-4)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"name": "adamww"}}, "optimizer: adamww"),
        (
            {"optimizer": {"lr": 1e30}},
            r"the loss is (nan|inf) in epoch 1, step 2 \(16 images, .*\); lower optimizer.lr",
        ),
        ({"training": {"precision": "fp16"}}, "training.precision: fp16 needs a GPU"),
        ({"folds": {"count": 40}}, "folds.count: 40 folds need as many groups, the input has 19"),
    ],
)
def test_impossible_settings_are_named(
    rendered_wbcbench: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], message: str
) -> None:
    run = RunFolder("impossible", tmp_path / "oof")
    with pytest.raises(UserError, match=message):
        train_folds(make_config(rendered_wbcbench, tmp_path, **sections), run, [0], resume=False, debug=False)
    assert not run.complete_folds()


def test_a_run_takes_no_fold_of_other_pretrained_weights(rendered_wbcbench: Path, tmp_path: Path) -> None:
    run, path = RunFolder("weights", tmp_path / "oof"), tmp_path / "weights.safetensors"
    config = make_config(rendered_wbcbench, tmp_path, training={"epochs": 1}, model={"pretrained": path})
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet").state_dict(), path)
        if seed == 0:
            train_folds(config, run, [0], resume=False, debug=False)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert run.fold(0).metadata()["pretrained_sha256"] == digest
    with pytest.raises(UserError, match=r"trained with another pretrained_sha256; name another run"):
        train_folds(config, run, [1], resume=False, debug=False)


def test_a_moving_average_that_lags_behind_is_told(
    rendered_wbcbench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # about 110 / 2 images: 2 or 3 updates of 16 an epoch, and an average over 10 of them
    config = make_config(rendered_wbcbench, tmp_path, training={"epochs": 1, "ema_decay": 0.9})
    train_folds(config, RunFolder("slow", tmp_path / "oof"), [0], resume=False, debug=False)
    said = "training.ema_decay: the average spans (3.3 epochs of 3|5.0 epochs of 2) updates and lags behind"
    assert re.search(said, capsys.readouterr().out)
    quick = make_config(rendered_wbcbench, tmp_path, training={"epochs": 1, "ema_decay": 0.5})
    train_folds(quick, RunFolder("quick", tmp_path / "oof"), [0], resume=False, debug=False)
    assert "training.ema_decay" not in capsys.readouterr().out
