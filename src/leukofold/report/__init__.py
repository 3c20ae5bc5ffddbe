"""The report of one or several runs: one self-contained HTML page, its figures as PNG, its numbers as JSON."""
