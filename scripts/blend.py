"""Blends runs by averaging their logits and writes a checked submission for each competition.

    python scripts/blend.py
    python scripts/blend.py --run wbcbench/convnextv2_tiny --run wbcbench/swinv2_tiny --name two-models

Behaviours: reads oof/<run>/fold*/, creates submissions/<competition>/<name>.csv or .zip and
<name>.json beside it (scores, runs, configurations, commits, library versions).
"""

import argparse

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME", help="a run; may be repeated (default: all)"
    )
    parser.add_argument("--competition", metavar="NAME", help="only this competition's runs (default: all found)")
    parser.add_argument("--name", help="the submission's name (default: made of the runs' names)")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.blending.combining import blend_runs
    from leukofold.blending.loading import select_runs
    from leukofold.competitions import get_competition
    from leukofold.submission import write_submission
    from leukofold.summary import blend_summary

    if arguments.competition is not None:
        get_competition(arguments.competition)
    for runs in select_runs(arguments.run, arguments.competition).values():
        blend = blend_runs(runs)
        submission = write_submission(blend, arguments.name) if len(blend.test.image_id) else None
        print(blend_summary(blend, submission), end="\n\n")


if __name__ == "__main__":
    main()
