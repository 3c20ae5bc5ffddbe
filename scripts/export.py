"""Exports the networks of a finished run as one ONNX file.

    python scripts/export.py --run wbcbench/convnextv2_tiny
    python scripts/export.py --run cnmc/resnet50 --fold 0 1 --out cells.onnx

The graph takes images (n x 3 x S x S uint8, RGB, any n; normalisation is inside) and gives probabilities and logits,
averaged over the folds. It does no test-time augmentation, so it scores as the runs' scores without it.

Behaviours: reads oof/<run>/fold*/best.safetensors of all complete folds, or of those named; creates
oof/<run>/model.onnx, or the file named with --out, and beside it <file>.json: classes, image size, what is to be done
to an image first, origin. The file is written only if ONNX Runtime gives the logits that PyTorch gives.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, metavar="NAME", help="the run")
    parser.add_argument(
        "--fold", type=int, action="extend", nargs="+", metavar="K", help="folds (default: all that are complete)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.onnx", help="the file (default: oof/<run>/model.onnx)")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.runs import RunFolder

    run = RunFolder(arguments.run)

    from leukofold.exporting import export_run, load_folds

    out = arguments.out or run.path / "model.onnx"
    done = export_run(load_folds(run, arguments.fold), out)
    drawn = "; trained on RENDERED images, its predictions say nothing about patients" if done["rendered"] else ""
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, folds {', '.join(map(str, done['folds']))}, without test-time "
        f"augmentation; differs from PyTorch by {done['largest_difference_to_pytorch']:.1e} of the logits' deviation "
        f"(at most {done['tolerance']:.0e}){drawn}"
    )


if __name__ == "__main__":
    main()
