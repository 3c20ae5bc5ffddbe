"""Blends runs by the mean of their logits, or by a better method, and writes a checked submission per competition.

    python scripts/blend.py
    python scripts/blend.py --run wbcbench/convnextv2_tiny --run wbcbench/swinv2_tiny --name two-models
    python scripts/blend.py --method greedy
    python scripts/blend.py --method all
    python scripts/blend.py --run cnmc/paper002/preliminary --match-prior

Methods: mean_logits (the default), mean_probabilities, rank_average, greedy (selection with replacement), log_loss
(its convex optimum), stacking (logistic regression); each also with +biases, one per class for the competition's
metric, such as mean_logits+biases; all tries every one. A method is judged by nested folds, each fold by what was
fitted on the others, and taken only if its gain over the mean of logits is real: if the interval of the gain, by
bootstrap over groups, lies above 0. Fewer than 10 groups make no gain real; the choice of all is judged likewise.

With --match-prior the threshold between two classes is moved until as large a share of the test images is predicted
to be of either as of the training images.

Behaviours: reads oof/<run>/fold*/, creates submissions/<competition>/<name>.csv or .zip and
<name>.json beside it (scores, method, runs, configurations, commits, library versions).
"""

import argparse

from leukofold.cli import main_guard


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", action="append", default=[], metavar="NAME", help="a run; may be repeated (default: all)"
    )
    parser.add_argument("--competition", metavar="NAME", help="only this competition's runs (default: all found)")
    parser.add_argument("--name", help="the submission's name (default: made of the runs' names and method)")
    parser.add_argument("--method", metavar="NAME", default="mean_logits", help="how to combine (default: mean_logits)")
    parser.add_argument("--insist", action="store_true", help="take the method even if its gain is not real")
    parser.add_argument(
        "--match-prior", action="store_true", help="match the threshold between two classes to the training images"
    )
    return parser.parse_args()


@main_guard
def main() -> None:
    """Entry point."""
    arguments = parse_arguments()

    from leukofold.blending.combining import blend_runs
    from leukofold.blending.loading import select_runs
    from leukofold.blending.methods import need_method
    from leukofold.competitions import get_competition
    from leukofold.deciding import by_highest_logit, by_training_prior, need_two_classes
    from leukofold.submission import write_submission
    from leukofold.summary import blend_summary

    need_method(arguments.method, arguments.insist)
    if arguments.competition is not None:
        get_competition(arguments.competition)
    chosen = select_runs(arguments.run, arguments.competition)
    for name in chosen if arguments.match_prior else ():
        need_two_classes(name)
    for runs in chosen.values():
        blend = blend_runs(runs, arguments.method, arguments.insist)
        decision = by_training_prior(blend) if arguments.match_prior else by_highest_logit(blend)
        submission = write_submission(blend, arguments.name, decision=decision) if len(blend.test.image_id) else None
        print(blend_summary(blend, submission, decision), end="\n\n")


if __name__ == "__main__":
    main()
