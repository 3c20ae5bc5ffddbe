"""Checks a submission against the competition's own list, and uploads it.

    python scripts/submit.py submissions/wbcbench/demo.csv --check
    python scripts/submit.py submissions/wbcbench/convnextv2_tiny.csv --message "three folds, TTA"

Behaviours: creates nothing. WBCBench goes up through the Kaggle client; for C-NMC the steps at
CodaLab are printed.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("--check", action="store_true", help="only check it")
    parser.add_argument("--competition", help="whose it is (default: told by the JSON or the folder of the file)")
    parser.add_argument("--input", type=Path, help="folder of the competition's files (default: told by the JSON)")
    parser.add_argument("--message", default="leukofold", help="note to upload with it")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.submission import check, find_input, upload

    competition, root = find_input(arguments.file, arguments.competition, arguments.input)
    check(arguments.file, competition, root)
    print(f"{arguments.file}: a valid submission to {competition.title}, checked against {root}")
    if not arguments.check:
        print(upload(arguments.file, competition, arguments.message))


if __name__ == "__main__":
    main()
