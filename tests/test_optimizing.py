"""Learning rates of parts of the network, and schedules, against torch's own and the paper's numbers."""

import numpy as np
import pytest
import torch

from leukofold.config import CONFIG_FOLDER, ImageConfig, ModelConfig, OptimizerConfig, load_config
from leukofold.errors import UserError
from leukofold.models.classifier import Classifier
from leukofold.training.optimizing import Schedule, build_optimizer


def network(backbone: str = "test_resnet", **model: object) -> Classifier:
    torch.manual_seed(0)
    settings = {"backbone": backbone, "pretrained": False, "dropout": 0.0, **model}
    return Classifier(ModelConfig.model_validate(settings), ImageConfig(size=32), classes=2)


def rates(net: Classifier, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Returns parameter name -> learning rate now."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def settings_of(**changes: object) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": "adam", "lr": 1e-4, "weight_decay": 0.0, "min_lr": 0.0, **changes})


PAPER_002 = [{"depth": [0, 1], "lr": 1e-6}, {"match": "head.*", "lr": 1e-2}]


def test_stages_learn_at_the_rates_of_paper_002_and_all_are_divided_by_ten_every_two_epochs() -> None:
    config = load_config([CONFIG_FOLDER / "cnmc/paper002/preliminary.yaml"]).optimizer
    net = network()
    optimizer = build_optimizer(net, config)
    schedule = Schedule(optimizer, config, updates=10, epochs=6)
    for epoch in range(6):
        for update in (10 * epoch, 10 * epoch + 9):
            schedule.start_update(update)
            found = rates(net, optimizer)
            assert set(found) == {name for name, _ in net.named_parameters()}
            decay = 10.0 ** -(epoch // 2)
            for name, rate in found.items():
                base = 1e-2 if name.startswith("head.") else 1e-4
                if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1.")):
                    base = 1e-6
                assert rate == pytest.approx(base * decay, rel=1e-9), name
            assert schedule.rate == pytest.approx(1e-4 * decay)


def test_the_paper_s_own_network_has_its_stem_and_first_stage_slow() -> None:
    net = network("legacy_seresnext50_32x4d", one_logit=True)
    config = settings_of(groups=PAPER_002)
    optimizer = build_optimizer(net, config)
    Schedule(optimizer, config, updates=10, epochs=6)  # sets the rates of the first update
    by_stage: dict[str, set[float]] = {}
    for name, rate in rates(net, optimizer).items():
        by_stage.setdefault(".".join(name.split(".")[:2]), set()).add(round(rate, 12))
    assert by_stage == {
        "backbone.layer0": {1e-6},
        "backbone.layer1": {1e-6},
        "backbone.layer2": {1e-4},
        "backbone.layer3": {1e-4},
        "backbone.layer4": {1e-4},
        "head.1": {1e-2},
    }


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext2", "test_efficientnet", "small_cnn"])
def test_depths_mean_something_in_backbones_of_every_kind(backbone: str) -> None:
    net = network(backbone)
    config = settings_of(groups=[{"depth": [0], "lr": 1e-6}, {"match": "head.*", "lr": 1e-2}])
    optimizer = build_optimizer(net, config)
    Schedule(optimizer, config, updates=10, epochs=6)
    found = rates(net, optimizer)
    assert {round(rate, 12) for rate in found.values()} == {1e-6, 1e-4, 1e-2}
    assert {name for name, rate in found.items() if rate == pytest.approx(1e-2)} == {"head.1.weight", "head.1.bias"}


def test_a_backbone_without_depths_takes_patterns() -> None:
    net = network("poolformer_s12")
    groups = [{"match": "backbone.*", "lr": 1e-5}]
    assert build_optimizer(net, settings_of(groups=groups)).param_groups[0]["lr_scale"] == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"timm knows no depths of \w+; name its parameters by match"):
        build_optimizer(net, settings_of(groups=[{"depth": [0], "lr": 1e-5}]))


def test_the_first_group_that_names_a_parameter_counts_and_decay_spares_biases() -> None:
    net = network()
    config = settings_of(
        weight_decay=0.05, groups=[{"match": "head.1.bias", "lr": 1e-3}, {"match": "head.*", "lr": 1e-2}]
    )
    optimizer = build_optimizer(net, config)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0), name
    Schedule(optimizer, config, updates=10, epochs=6)
    found = rates(net, optimizer)
    assert found["head.1.bias"] == pytest.approx(1e-3)
    assert found["head.1.weight"] == pytest.approx(1e-2)


def test_without_groups_the_cosine_ends_at_its_lowest_rate() -> None:
    net, config = network(), settings_of(min_lr=1e-6)
    optimizer = build_optimizer(net, config)
    schedule = Schedule(optimizer, config, updates=5, epochs=4)
    seen = []
    for update in range(20):
        schedule.start_update(update)
        seen.append(schedule.rate)
    expected = 1e-6 + (1e-4 - 1e-6) * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    assert seen == pytest.approx(expected.tolist())


def test_a_plateau_lowers_all_rates_alike_and_is_taken_up_where_it_was() -> None:
    losses = [1.0, 0.9, 0.95, 0.92, 0.91, 0.93, 0.5]
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4), factor=0.1, patience=1
    )
    config = settings_of(schedule="plateau", decay_epochs=1, groups=PAPER_002)
    net = network()
    optimizer = build_optimizer(net, config)
    schedule = Schedule(optimizer, config, updates=10, epochs=6)
    for epoch, loss in enumerate(losses):
        schedule.start_update(10 * epoch)  # changes nothing
        reference.step(loss)
        schedule.end_epoch(loss)
        base = reference.get_last_lr()[0]
        assert schedule.rate == pytest.approx(base)
        found = rates(net, optimizer)
        assert found["head.1.weight"] == pytest.approx(100 * base)
        assert found["backbone.layer1.0.conv1.weight"] == pytest.approx(base / 100)
        if epoch == 2:  # as a resumed training does
            state, kept = schedule.state(), optimizer.state_dict()
            optimizer = build_optimizer(net, config)
            schedule = Schedule(optimizer, config, updates=10, epochs=6)
            optimizer.load_state_dict(kept)
            schedule.take_up(state)
    assert base == pytest.approx(1e-6)  # it fell twice


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"match": "backbone.layer9.*", "lr": 1e-3}], r"optimizer.groups.0: backbone.layer9.\* names no parameter"),
        ([{"depth": [7], "lr": 1e-3}], r"optimizer.groups.0: depth 7 names no parameter .* depths are 0 to 4"),
        ([{"match": "*", "lr": 1e-3}, {"match": "head.*", "lr": 1e-3}], "that no earlier group has"),
    ],
)
def test_a_group_that_names_nothing_is_refused(groups: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_optimizer(network(), settings_of(groups=groups))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": [{"lr": 1e-3}]}, "by match or by depth"),
        ({"groups": [{"lr": 1e-3, "match": "head.*", "depth": [1]}]}, "by match or by depth"),
        ({"schedule": "step", "decay_epochs": 0}, "decay_epochs: steps need at least 1"),
        ({"schedule": "plateau", "warmup_epochs": 1}, "warmup_epochs: a plateau has no warm-up"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(**changes)
