"""What ``scripts/benchmark.py`` measures; see ``docs/performance.md`` for what it gave."""
