"""Small indexes: what they are made by, in each layout."""

from collections.abc import Callable
from pathlib import Path

from navis.experiments._crash import Model

# Built with more than 1,024: at that size, and then at 4,096, a growing index trains its quantizer.
DIM, ROWS, BUILT = 32, 24000, 1100
LAYOUTS = ("selective", "packed")
Fresh = Callable[[Path, str], Model]
