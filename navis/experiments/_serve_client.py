"""A process that inserts over HTTP until the server goes, and writes down what was acknowledged.

Run by path with one argument, a JSON object. Whoever started it writes a line to its standard input
and reads one back before stopping the server: what fails before that is a failure, what fails
afterwards is the end. Prints the failures, as JSON.
"""

import http.client
import itertools
import json
import os
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from navis.serve import wire


class Client:
    """Several connections; each inserts `batch` rows at a time, of ids of its own.

    Attributes:
        failures: What went wrong before the server was to stop.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job, self._rows = job, np.load(job["rows"], mmap_mode="r")
        self._file = os.open(job["acknowledged"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stopping = threading.Event()
        self.failures: list[str] = []

    def run(self) -> None:
        """Insert until the server is gone."""
        threads = [
            threading.Thread(target=self._insert, args=(number,))
            for number in range(self._job["connections"])
        ]
        for thread in threads:
            thread.start()
        sys.stdin.readline()
        self._stopping.set()
        print("noted", flush=True)
        for thread in threads:
            thread.join()

    def _insert(self, number: int) -> None:
        job, batch = self._job, self._job["batch"]
        opened = http.client.HTTPConnection(urlsplit(job["url"]).netloc, timeout=60)
        headers = {"content-type": wire.MEDIA_TYPE}
        for turn in itertools.count(number, job["connections"]):
            first = job["start"] + turn * batch
            ids = np.arange(first, first + batch, dtype="<u8")
            body = wire.pack_rows(ids, self._rows[ids % len(self._rows)])
            try:
                opened.request("POST", "/v1/insert", body, headers)
                answer = opened.getresponse()
                said = answer.read()
                if answer.status != 200:
                    raise OSError(f"{answer.status} {said.decode()}")
            except (OSError, http.client.HTTPException) as error:
                if not self._stopping.is_set():
                    self.failures.append(repr(error))
                return
            os.write(self._file, ids.tobytes())


if __name__ == "__main__":
    client = Client(json.loads(sys.argv[1]))
    client.run()
    print(json.dumps(client.failures))
