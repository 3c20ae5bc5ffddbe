"""Trains folds of a run and writes their out-of-fold and test logits.

    accelerate launch scripts/train_fold.py --fold 0
    accelerate launch scripts/train_fold.py --config configs/wbcbench/convnextv2_tiny.yaml --fold all --resume
    accelerate launch --multi_gpu scripts/train_fold.py --fold all --fold-per-process

Behaviours: creates oof/<run>/folds.csv and, per fold, oof/<run>/fold<k>/ with oof.npz, test.npz,
metadata.json, history.csv, best.safetensors, metrics.json and last/. With the default configuration
(configs/demo.yaml) it first renders its own images into input/demo/. Several processes train each fold together, one
fold after the other; with --fold-per-process each trains folds of its own, on a GPU of its own.
"""

import argparse

from leukofold.cli import DEFAULT_CONFIG, add_config_arguments, main_guard
from leukofold.errors import LostProcessError, UserError


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--run",
        "--run-name",  # torchrun takes any --run before its script's own arguments for its --run-path
        metavar="NAME",
        help="the run's name (default: the configuration's path); under torchrun write --run-name",
    )
    parser.add_argument("--fold", nargs="+", action="extend", metavar="K", help="one fold, several, or all (default)")
    parser.add_argument(
        "--fold-per-process",
        action="store_true",
        help="each process of the launcher trains folds of its own on its own GPU; training.batch_size is that of each",
    )
    parser.add_argument("--resume", action="store_true", help="skip complete folds, go on with an interrupted one")
    parser.add_argument("--debug", action="store_true", help="a few batches of everything, into <run>-debug")
    return parser.parse_args()


def fold_numbers(words: list[str], known: list[int]) -> list[int]:
    """Turns the words after ``--fold`` into numbers.

    Args:
        words: Numbers, or ``all``.
        known: The folds that can be trained.

    Returns:
        Fold numbers, each once.

    Raises:
        UserError: A word is no number, or there is no such fold.
    """
    if words == ["all"]:
        return known
    for word in words:
        if not word.isdecimal() or int(word) not in known:
            raise UserError(f"--fold {word}: no fold to train; give some of {' '.join(map(str, known))}, or all")
    return list(dict.fromkeys(int(word) for word in words))


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.config import load_config, run_name

    paths = arguments.config or [DEFAULT_CONFIG]
    config = load_config(paths, arguments.overrides)
    folds = fold_numbers(arguments.fold or ["all"], config.folds.numbers)
    name = (arguments.run or run_name(paths)) + ("-debug" if arguments.debug else "")

    from leukofold.runs import RunFolder

    run, own = RunFolder(name), folds
    if arguments.fold_per_process:  # now: mistakes so far are told once, and nothing has imported torch or tqdm
        from leukofold.training.parting import part_from_others

        rank, processes = part_from_others()
        own = folds[rank::processes]
        if not own:
            print(f"process {rank} of {processes}: no fold is left for it")
            return

    from leukofold.training.fold import train_folds
    from leukofold.training.launch import joined_processes

    try:
        with joined_processes():
            train_folds(config, run, own, arguments.resume, arguments.debug, beside=folds)
    except (KeyboardInterrupt, LostProcessError) as end:
        end.args = (f"{end}; the same command with --resume goes on from the last whole epoch",)
        raise


if __name__ == "__main__":
    main()
