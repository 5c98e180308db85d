"""`python -m benchmarks`: the benchmark program."""

from benchmarks.cli import bench
from promptembedder.cli.console import configure_logging

if __name__ == "__main__":
    configure_logging()
    bench(prog_name="python -m benchmarks")
