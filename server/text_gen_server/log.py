"""Log lines on stderr, as text or as JSON in the shape the Rust programs use. No prompt text and no token id may be logged."""

import json
import logging
import sys
from datetime import UTC, datetime

TARGET = "text_gen_server"


def set_up_logging(*, json_output: bool) -> None:
    """Sends this package's lines from INFO on, and the warnings of others, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_output else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(TARGET).setLevel(logging.INFO)


class TextFormatter(logging.Formatter):
    """`2026-11-21T11:04:51.123456Z  INFO text_gen_server: message`"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {_level(record):>5} {record.name}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"timestamp": .., "level": "INFO", "fields": {"message": ..}, "target": "text_gen_server"}`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(
            {"timestamp": _timestamp(record), "level": _level(record), "fields": fields, "target": record.name},
            ensure_ascii=False,
        )


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _level(record: logging.LogRecord) -> str:
    return {"WARNING": "WARN", "CRITICAL": "ERROR"}.get(record.levelname, record.levelname)
