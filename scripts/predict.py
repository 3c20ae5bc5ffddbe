"""Predicts any images with the networks of finished runs.

    python scripts/predict.py --run wbcbench/convnextv2_tiny --images FOLDER --out predictions.csv
    python scripts/predict.py --run studies/paper001/swinv2-expanded-image \
        --run studies/paper001/convnextv2-expanded-image --run studies/paper001/dinobloom-expanded-image \
        --images cells.csv --out predictions.csv

Behaviours: reads oof/<run>/fold*/best.safetensors of all complete folds and the images of the folder (or of the
column path of the CSV; for runs on several images of a cell, of a folder or a column for each modality): first it
checks that all are readable, then each is decoded once for all networks and views. (Runs with
inference.batch_statistics: domain first estimate these on all images, once for each network: what they predict of an
image depends on the others.) Creates --out: path, prediction and a probability per class. Logits are averaged over
test-time views and folds, then over runs. On GPUs it computes in bf16.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard
from leukofold.errors import UserError


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME", help="a run; may be repeated")
    parser.add_argument("--images", type=Path, required=True, metavar="PATH", help="a folder, or a CSV with paths")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), metavar="CSV", help="the file to write")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument(
        "--crop-of",
        metavar="SPLIT",
        help="the split or target domain whose crop the images get, where runs have several",
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="default: bf16 on GPUs that have it")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks first: takes minutes, pays for many thousand images",
    )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.prediction import list_images, load_members, predict_images, seen_by, write_predictions
    from leukofold.runs import RUNS
    from leukofold.training.launch import joined_processes, main_first, make_inference_accelerator

    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: give at least 1")
    if arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: is a folder; name a CSV file")
    with joined_processes():
        accelerator = make_inference_accelerator(arguments.precision)
        members = load_members(arguments.run, accelerator.device, RUNS)
        seen, first = seen_by(members), accelerator.is_main_process
        files = main_first(accelerator, lambda: list_images(arguments.images, seen, check=first))
        logits = predict_images(
            members, files, accelerator, arguments.batch_size, None, arguments.crop_of, arguments.compile
        )
    if accelerator.is_main_process:
        write_predictions(arguments.out, files.iloc[:, 0].tolist(), logits, members[0].class_names)
        networks = sum(len(member.networks) for member in members)
        drawn = [member.name for member in members if member.rendered]
        if drawn:
            print(f"trained on RENDERED images, its predictions say nothing about patients: {', '.join(drawn)}")
        what = "cells" if seen else "images"
        print(f"{len(files)} {what}, {networks} networks of {len(members)} run(s): {arguments.out}")


if __name__ == "__main__":
    main()
