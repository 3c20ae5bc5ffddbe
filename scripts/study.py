"""Trains a study's grid of configurations, and makes its table beside the published values.

    python scripts/study.py configs/studies/demo.yaml --dry-run
    accelerate launch scripts/study.py configs/studies/paper001.yaml
    accelerate launch scripts/study.py configs/studies/paper001.yaml --only model=swinv2 --only split=group
    python scripts/study.py configs/studies/paper001.yaml --table

Behaviours: creates oof/<study>/<levels>/ as scripts/train_fold.py does for a run, then oof/<study>/table.md and
table.csv, and of what has run oof/<study>/figures/: learning_curves.png; seeds.png, a box plot of three seeds or
more; maps.png and confidences.png where the study asks for maps of several laboratories, or how sure MM-MIMO's heads
are; subjects.png and confusion.png of the best run, or of the one nearest to the mean of a row that the study names.
What is complete is skipped, what was interrupted goes on. With --dry-run it creates nothing.
"""

import argparse
import os
from pathlib import Path

from leukofold.cli import add_config_arguments, main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study, such as configs/studies/demo.yaml")
    add_config_arguments(parser, "configuration laid over every run's files; what a level sets, and --set, win over it")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="AXIS=LEVEL",
        help="train these levels' runs only, or with seed=NUMBER a seed's, so that several machines share a study",
    )
    parser.add_argument(
        "--folds", type=int, nargs="+", action="extend", default=[], metavar="K", help="train these folds only"
    )
    parser.add_argument("--name", help="the study's name (default: its path below configs/)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="tell what would run and how long it takes, and end")
    action.add_argument(
        "--table", action="store_true", help="train nothing, make the table and the pictures of what is there"
    )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.studies.grid import load_study

    grid = load_study(arguments.study, arguments.name, arguments.config or (), arguments.overrides)
    selected = grid.select(arguments.only)
    first = os.environ.get("RANK", "0") == "0"
    if not arguments.table:
        from leukofold.studies.plan import make_plan, plan_summary

        plans = make_plan(grid, selected, arguments.folds, probe=arguments.dry_run)
        if first:
            print(plan_summary(grid, plans), flush=True)
        if arguments.dry_run:
            return

        from leukofold.studies.running import train_runs

        train_runs(plans)
    if first:
        from leukofold.studies.pictures import save_pictures
        from leukofold.studies.results import collect_results
        from leukofold.studies.table import to_markdown, write_tables

        results = collect_results(grid)
        write_tables(results)  # first, as pictures take longer
        pictures = save_pictures(results)
        files = write_tables(results)  # again, with what there is to remark on the pictures
        print(to_markdown(results))
        print(f"saved as {files[0]} and {files[1]}")
        if pictures:
            print(f"pictures: {', '.join(map(str, pictures))}")


if __name__ == "__main__":
    main()
