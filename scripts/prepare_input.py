"""Checks a competition's input folder: finds, counts and decodes every image.

    python scripts/prepare_input.py --competition wbcbench
    python scripts/prepare_input.py --competition cnmc --download

Behaviours: creates nothing, or with --download fills input/<competition>/. Ends with exit code 2
where images are missing or unreadable; counts that differ from the published ones are only told.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard
from leukofold.errors import UserError


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--competition", required=True, metavar="NAME", help="wbcbench, cnmc, raabin, acevedo or multimodal"
    )
    parser.add_argument("--input", type=Path, metavar="DIR", help="its folder (default: input/<competition>)")
    parser.add_argument("--download", action="store_true", help="fetch the files through the Kaggle client first")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.competitions import get_competition
    from leukofold.preparation import describe, fetch_input, inspect_input

    competition = get_competition(arguments.competition)
    root = arguments.input or Path("input") / competition.name
    if arguments.download:
        print(f"unpacked {fetch_input(competition, root).name} into {root}")
    report = inspect_input(competition, root)
    print(f"{competition.title} in {root}")
    print(describe(report))
    faults = len(report.missing) + len(report.unreadable)
    if faults:
        raise UserError(
            f"{root}: {len(report.missing)} images missing and {len(report.unreadable)} unreadable, named above; "
            "download them again"
        )
    differing = len(report.differing)
    print(f"every image decodes; {differing or 'no'} counts differ from the published ones")


if __name__ == "__main__":
    main()
