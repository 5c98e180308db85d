"""One line a request: JSON for machines, words for people; never a text, an instruction or a key."""

import json
import logging
import sys
from typing import Literal

__all__ = ["log_to_stderr"]


class _JsonLines(logging.Formatter):
    """Each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


class _Words(logging.Formatter):
    """Each record as a line to read."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        said = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.getMessage()} {said}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_to_stderr(form: Literal["text", "json"], *, requests: bool = True) -> None:
    """Send what the server and the library log to stderr in this form, in place of what was set up before.

    Args:
        requests: With a line for each request.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _Words())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("promptembedder.server").setLevel(logging.INFO)
    logging.getLogger("promptembedder.server.requests").setLevel(logging.INFO if requests else logging.WARNING)
