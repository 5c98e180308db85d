"""`python -m benchmarks.offline`: prepare, install and measure."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # last, so that an installed promptembedder takes precedence over the checkout
    sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))
    from benchmarks.offline.cli import main

    sys.exit(main(sys.argv[1:]))
