"""Reports on one or several runs: one HTML page for laptop and paper, with figures, pictures of cells and numbers.

    python scripts/report.py --run wbcbench/convnextv2_tiny
    python scripts/report.py --run paper001/swinv2_tiny --run paper001/convnextv2_tiny --out report

Several runs are reported side by side and as the mean of their logits. The page needs no network and no other file.

Behaviours: reads oof/<run>/fold*/ and the input that the runs were trained on; creates oof/<run>/report/ (of several
runs oof/blend-of-<number>-<digest>/report/), or the folder named with --out: report.html, the same figures as
figures/*.png, and metrics.json; keeps the embeddings of the first run's held-out images in its fold folders.
"""

import argparse
from pathlib import Path

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME", help="a run; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to (default: oof/<run>/report)")
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.blending.loading import joint_name, select_together
    from leukofold.files import working_path
    from leukofold.runs import RUNS

    runs = select_together(arguments.run)
    folder = arguments.out or RUNS / joint_name(runs) / "report"

    from leukofold.report.page import write_report
    from leukofold.report.summary import report_summary

    numbers, notes = write_report(runs, folder)
    print(report_summary(runs, numbers, notes))
    print(f"  {working_path(folder / 'report.html')}, the same figures in figures/, the numbers in metrics.json")


if __name__ == "__main__":
    main()
