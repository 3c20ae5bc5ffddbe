"""The page of faults that were tried names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_line_of_the_tables_names_tests_that_are_there() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith("| what ")]
    assert len(lines) > 40
    for line in lines:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line.split(" | ")[-1])
        assert named, line
        for file, test in named:
            assert re.search(rf"^def {test}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), test
