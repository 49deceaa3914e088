"""The process that is killed: changes an index and says what has been acknowledged.

Run by path with a JSON file: folder of the index, options of `open`, the .npy file of vectors,
`acks` (a file that is told too, or null) and `streams`, one list of steps per thread. Each step is
acknowledged on standard output by a record of _crash.ACK. Ends when standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from shorthaul.errors import ShorthaulError

from navis import Index
from navis.experiments._crash import ACK


def main(plan: dict[str, Any]) -> None:
    """Open, run the streams, wait."""
    told = [1] if plan["acks"] is None else [1, os.open(plan["acks"], os.O_WRONLY | os.O_APPEND)]
    vectors = np.load(plan["vectors"], mmap_mode="r")
    index = Index.open(plan["folder"], **plan["options"])

    def tell(what: bytes, thread: int, number: int) -> None:
        for fd in told:
            os.write(fd, ACK.pack(what, thread, number, time.monotonic()))

    def work(thread: int) -> None:
        try:
            for number, (kind, ids, rows) in enumerate(plan["streams"][thread]):
                if kind == "insert":
                    index.insert(ids, vectors[rows])
                elif kind == "delete":
                    index.delete(ids)
                else:
                    tell(b"S", thread, number)
                    getattr(index, kind)()
                tell(b"A", thread, number)
        except ShorthaulError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        except BaseException as error:
            print(f"thread {thread}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(70)

    tell(b"R", 0, 0)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(plan["streams"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(b"E", 0, 0)
    sys.stdin.read()
    index.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
