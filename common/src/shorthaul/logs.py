"""One logger format, which says the rank where there is one."""

import logging
import os
import sys

_ROOT = "shorthaul"


class _Rank(logging.Filter):
    """Puts `rank 3` in front of a worker's lines, nothing in front of a single process's."""

    def filter(self, record: logging.LogRecord) -> bool:
        rank = os.environ.get("RANK")
        record.rank = f"rank {rank} " if rank is not None else ""
        return True


def setup(verbose: bool = False) -> None:
    """Send all shorthaul loggers to standard error, once.

    Args:
        verbose: Show DEBUG; otherwise INFO on rank 0 and WARNING elsewhere, so that a message every
            rank has reason to print appears once.
    """
    logger = logging.getLogger(_ROOT)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Rank())
    handler.setFormatter(logging.Formatter("%(asctime)s %(rank)s%(name)s: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    first = os.environ.get("RANK", "0") == "0"
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if first else logging.WARNING)
    logger.propagate = False


def get(name: str) -> logging.Logger:
    """Give the logger of a module.

    Args:
        name: Usually `__name__`; names outside the package are put below it, so that one level and
            one format hold for every artifact.
    """
    return logging.getLogger(name if name.split(".")[0] == _ROOT else f"{_ROOT}.{name}")
