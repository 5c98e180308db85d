"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptembedder.storage.manifest import MANIFEST_NAME

__all__ = ["whole_folder"]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `target` when the block ends well; nothing changes when it fails.

    Other files already in `target` (logs, checkpoints) stay. Where `target` does not exist yet, it appears in one step.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp makes it private
        if not target.exists():
            scratch.rename(target)
            return
        # the manifest last: cut off before it, the hashes tell that the folder is torn
        for made in sorted(scratch.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
            if made.is_dir():
                shutil.rmtree(target / made.name, ignore_errors=True)
            made.replace(target / made.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
