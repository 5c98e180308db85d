"""`python -m benchmarks.offline`: prepare, install and measure."""

from benchmarks.offline.cli import offline

if __name__ == "__main__":
    offline(prog_name="python -m benchmarks.offline")
