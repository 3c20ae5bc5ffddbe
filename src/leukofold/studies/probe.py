"""How long a network's training step takes on this machine, without any data."""

import os
import statistics
import time
from contextlib import nullcontext

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

from leukofold.config import Config
from leukofold.errors import UserError
from leukofold.models.classifier import Classifier
from leukofold.processes import cores_per_process

STEPS, LEAST_SECONDS = 2, 0.5  # timed at least, after a step that warms up; the median counts

IMAGES_ON_CPU = 8  # at most, per step: the time per image hardly depends on it


def seconds_per_image(config: Config, classes: int, modalities: int = 1) -> tuple[float, str]:
    """Times training steps on random images, with random weights.

    Args:
        config: Network, image size, batch and precision.
        classes: K.
        modalities: Images of a cell.

    Returns:
        Seconds per image, and the device's kind.

    Raises:
        UserError: The network cannot be built, or the batch does not fit into the device's memory.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = accelerator or torch.device("cpu")
    batch = max(2, config.training.batch_size // config.training.accumulate)  # batch statistics need two
    if device.type == "cpu":
        torch.set_num_threads(cores_per_process())
        batch = min(batch, IMAGES_ON_CPU)
    precision = config.training.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    model = config.model.model_copy(update={"pretrained": False})
    network = Classifier(model, config.image, classes, modalities).to(device)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-6)
    shape = (batch, 3 * modalities, config.image.size, config.image.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % classes
    seconds: list[float] = []  # of each step, the first of which warms up
    try:
        while len(seconds) <= STEPS or sum(seconds[1:]) < LEAST_SECONDS:
            began = time.perf_counter()
            with torch.autocast(device.type, kinds[precision]) if precision in kinds else nullcontext():
                logits = network(images)
            heads = logits.float().reshape(batch, -1, classes)  # one, or one for each image of a cell
            losses = [torch.nn.functional.cross_entropy(head, labels) for head in heads.unbind(1)]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            next(network.parameters())[:1].detach().cpu()  # waits until the device has moved the weights
            seconds.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        raise UserError(
            f"training.batch_size: {batch} images of {config.image.size} pixels do not fit into the memory of this "
            f"{device.type} device with {config.model.backbone}; raise training.accumulate"
        ) from None
    return statistics.median(seconds[1:]) / batch, device.type
