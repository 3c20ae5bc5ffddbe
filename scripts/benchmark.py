"""Compares two ways of doing a thing, taking turns in one run, on rendered images; prints ratios and saves JSON.

    python scripts/benchmark.py train          # our trainer and a plain PyTorch loop; where a training step goes
    python scripts/benchmark.py train --config configs/demo.yaml --set training.precision=bf16
    python scripts/benchmark.py test_pass      # nine networks, eight views: predict.py's way, and a plain loop
    python scripts/benchmark.py denoise        # our non-local means, and scikit-image's
    python scripts/benchmark.py cache          # training images from the cache, and decoded from their files
    python scripts/benchmark.py full_size      # what comes before and after training, at the size of WBCBench: seconds
    python scripts/benchmark.py scaling        # a training on 1, 2 and 4 processes, on one fold and on a fold each
    python scripts/benchmark.py memory         # what a training on 55,000 images holds in memory
    python scripts/benchmark.py start_up       # --help, and from the command to the first training step
    python scripts/benchmark.py duplicates     # all pairs of 100,000 hashes, by matrix products and one by one
    python scripts/benchmark.py blend          # every method of combining nine runs, judged by nested folds
    python scripts/benchmark.py frozen         # epochs of a frozen ResNet-50, through it and on its cached features
    python scripts/benchmark.py latency        # one image from its file to its class, by PyTorch and by ONNX Runtime
    python scripts/benchmark.py latency --run cnmc/resnet50        # the same with a run's network

Behaviours: reads oof/<run>/ for latency --run; creates <out>/<what>.json (default: cache/benchmarks/), with machine,
versions and every figure that was printed, and, for full_size, rendered images in cache/benchmark/, once. Run it on a
machine that does nothing else. What it gave: docs/performance.md.
"""

import argparse
import importlib
import shlex
import sys
from functools import partial
from pathlib import Path

from leukofold.cli import add_config_arguments, main_guard
from leukofold.errors import UserError

MODULES = {
    "blend": "combining",
    "cache": "images",
    "denoise": "images",
    "duplicates": "images",
    "frozen": "frozen",
    "full_size": "full_size",
    "latency": "latency",
    "memory": "memory",
    "scaling": "scaling",
    "start_up": "start_up",
    "test_pass": "predicting",
    "train": "training",
}
"""Benchmark -> its module in ``leukofold.benchmarks``, where a function of its name runs it."""

CONFIGURED = ("latency", "scaling", "train")
"""Benchmarks that take a configuration."""


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(MODULES), help="what to compare")
    parser.add_argument("--images", type=int, metavar="N", help="number of images or hashes")
    parser.add_argument("--run", metavar="NAME", help="latency: the network of this run's first complete fold")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="test_pass (default: bf16 on GPUs)")
    parser.add_argument("--out", type=Path, default=Path("cache/benchmarks"), metavar="DIR", help="folder of the JSON")
    add_config_arguments(
        parser,
        "train, scaling, latency: a configuration, with random weights (default: wbcbench/convnextv2_tiny; the demo; "
        "ResNet-50 on C-NMC)",
    )
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses options that the chosen benchmark does not have."""
    what = arguments.what
    if arguments.images is not None and arguments.images < 30 and what != "test_pass":
        raise UserError(f"--images {arguments.images}: give at least 30")
    if arguments.run and (what != "latency" or arguments.config):
        raise UserError("--run: of latency alone, and in the place of --config")
    if arguments.precision and what != "test_pass":
        raise UserError(f"--precision: of test_pass alone; {what} takes --set training.precision=... if anything")
    if arguments.config and what not in CONFIGURED:
        raise UserError(f"--config: {' and '.join(CONFIGURED)} take one, {what} has no network to choose")
    if arguments.overrides and what not in CONFIGURED[1:]:
        raise UserError(f"--set: {' and '.join(CONFIGURED[1:])} take it, {what} does not")


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    check_arguments(arguments)

    from leukofold.benchmarks.measuring import Report

    what = arguments.what
    benchmark = getattr(importlib.import_module(f"leukofold.benchmarks.{MODULES[what]}"), what)
    report = Report(what, shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]]))
    measure = partial(benchmark, report, arguments.images)
    if what == "latency":
        measure(arguments.run, arguments.config)
    elif what in CONFIGURED:
        measure(arguments.config, arguments.overrides)
    elif what == "test_pass":
        measure(arguments.precision)
    else:
        measure()
    print(report.save(arguments.out))


if __name__ == "__main__":
    main()
