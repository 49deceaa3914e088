"""One logger format, which says the rank where there is one."""

import logging
import os
import sys


def setup(verbose: bool = False) -> None:
    """Send all shorthaul loggers to standard error.

    Without `verbose` (DEBUG) rank 0 shows INFO and the others WARNING, so that a message every rank
    has reason to print appears once.
    """
    rank = os.environ.get("RANK")
    who = f"rank {rank} " if rank is not None else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(name)s: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("shorthaul")
    logger.handlers = [handler]
    quiet = logging.INFO if rank in (None, "0") else logging.WARNING
    logger.setLevel(logging.DEBUG if verbose else quiet)
    logger.propagate = False


def get(name: str) -> logging.Logger:
    """Give a module's logger; all are below `shorthaul`, so that one level and format hold."""
    return logging.getLogger(name if name.split(".")[0] == "shorthaul" else f"shorthaul.{name}")
