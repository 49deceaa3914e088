"""A process that reads 4 KiB at random places of a file past the page cache until told to stop.

Run by path, with the file as its argument; ends when its standard input does, and then prints what
the reads took, as JSON. Knows nothing but the standard library, so that it starts at once.
"""

import json
import mmap
import os
import random
import select
import sys
import time

_PAGE, _PAUSE_S = 4096, 0.005


def main(path: str) -> None:
    """Read until standard input ends."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pages = os.fstat(file).st_size // _PAGE
    buffer = mmap.mmap(-1, _PAGE)  # aligned, as O_DIRECT wants it
    place = random.Random(0)
    took = []
    print("reading", flush=True)
    while not select.select([sys.stdin], [], [], _PAUSE_S)[0]:
        began = time.perf_counter()
        os.preadv(file, [buffer], place.randrange(pages) * _PAGE)
        took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    if took:
        at = {"p50_ms": took[len(took) // 2], "p99_ms": took[int(len(took) * 0.99)]}
        print(json.dumps({"reads": len(took), "worst_ms": took[-1], **at}))


if __name__ == "__main__":
    main(sys.argv[1])
