"""Known vulnerabilities of pinned requirements: python .ci/audit.py REQUIREMENTS. Needs pip-audit and a network.

Exit code 0: asked for every distribution, none is known. 1: some are known, and named. 3: it could not be asked, in
full or in part; pip-audit by itself calls that well where a distribution is not found.
"""

import json
import subprocess
import sys
from pathlib import Path


def main(requirements: str) -> int:
    """Ask, say in few lines what came of it, and return the exit code."""
    options = ["--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    # the file holds all that is needed, pinned: nothing is to be resolved or downloaded
    words = [sys.executable, "-m", "pip_audit", "--requirement", requirements, "--no-deps", "--disable-pip", *options]
    done = subprocess.run(words, capture_output=True, text=True)
    try:
        entries = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip() or "no answer").splitlines()[-1]
        sys.stdout.write(f"NOT AUDITED: the list of vulnerabilities cannot be asked from here. {last[:80]}\n")
        return 3
    known = [(entry, found) for entry in entries for found in entry.get("vulns", [])]
    for entry, found in known:
        mend = ", ".join(found["fix_versions"]) or "no version"
        sys.stdout.write(f"{entry['name']} {entry['version']}: {found['id']}, mended in {mend}\n")
    wanted = len(Path(requirements).read_text(encoding="utf-8").split())
    asked = sum("skip_reason" not in entry for entry in entries)
    if known:
        return 1
    if asked < wanted:
        sys.stdout.write(f"NOT AUDITED: {wanted - asked} of {wanted} distributions were not found.\n")
        return 3
    sys.stdout.write(f"{wanted} distributions, no vulnerability known\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
