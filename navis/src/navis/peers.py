"""Peers from PyPI, measured as we are: each in a process of its own, driven by lines of JSON.

Two of them need modules of one name, and some need another numpy: each has its own virtual
environment, whose Python runs this file as a script. Above `Driver` there is therefore nothing but
the standard library; a peer is imported by the process that is it.

A request is one line, `{"do": "build" | "open" | "search", …}`, and so is its answer, with the CPU
seconds, the seconds and the bytes read from disk (`ru_inblock`) that it took.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class System(Protocol):
    """What a peer's process offers: vectors are .npy files, parameters those of the request."""

    def build(self, base: Any, folder: Path, given: Mapping[str, Any]) -> None:
        """Make an index of float32 rows, on disk where the system can."""

    def open(self, folder: Path, given: Mapping[str, Any]) -> None:
        """Make it ready to be searched."""

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """Give ids, shape (queries, k)."""


class DiskAnn:
    """diskannpy's disk index; no node is cached unless the request says `cached_nodes`."""

    def build(self, base: Any, folder: Path, given: Mapping[str, Any]) -> None:
        """Build by its own one-call builder."""
        import diskannpy  # type: ignore[import-not-found]

        diskannpy.build_disk_index(
            data=base,
            distance_metric="l2",
            index_directory=str(folder),
            complexity=given["build_list"],
            graph_degree=given["degree"],
            build_memory_maximum=8.0,
            num_threads=given["threads"],
            alpha=given["alpha"],
            num_of_pq_chunks=given["code_bytes"],
            vector_dtype=base.dtype.type,
        )

    def open(self, folder: Path, given: Mapping[str, Any]) -> None:
        """Open with its beam width."""
        import diskannpy
        import numpy as np

        self._index = diskannpy.StaticDiskIndex(
            index_directory=str(folder),
            num_threads=given["threads"],
            beam_width=given["beam"],
            num_nodes_to_cache=given.get("cached_nodes", 0),
            distance_metric="l2",
            vector_dtype=np.float32,
        )

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """Search all at once."""
        found = self._index.batch_search(queries, k_neighbors=k, complexity=L, num_threads=threads)
        return found.identifiers


class _InMemory:
    """Systems in memory keep nothing on disk: opening builds again, from a copy of the base."""

    def build(self, base: Any, folder: Path, given: Mapping[str, Any]) -> None:
        import numpy as np

        self.fill(base, given)
        np.save(folder / "base.npy", base)

    def open(self, folder: Path, given: Mapping[str, Any]) -> None:
        import numpy as np

        if not hasattr(self, "_index"):
            self.fill(np.load(folder / "base.npy"), given)

    def fill(self, base: Any, given: Mapping[str, Any]) -> None:
        """Make the index."""
        raise NotImplementedError


class Hnswlib(_InMemory):
    """hnswlib."""

    def fill(self, base: Any, given: Mapping[str, Any]) -> None:
        """M is half the degree: its lowest layer has twice as many edges."""
        import hnswlib

        self._index = hnswlib.Index(space="l2", dim=base.shape[1])
        self._index.init_index(
            max_elements=len(base), ef_construction=given["build_list"], M=given["degree"] // 2
        )
        self._index.add_items(base, num_threads=given["threads"])

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """L is ef."""
        self._index.set_ef(L)
        return self._index.knn_query(queries, k=k, num_threads=threads)[0]


class Usearch(_InMemory):
    """usearch."""

    def fill(self, base: Any, given: Mapping[str, Any]) -> None:
        """Connectivity is half the degree, as hnswlib's M."""
        import numpy as np
        from usearch.index import Index  # type: ignore[import-not-found]

        self._index = Index(
            ndim=base.shape[1],
            metric="l2sq",
            dtype="f32",
            connectivity=given["degree"] // 2,
            expansion_add=given["build_list"],
        )
        self._index.add(np.arange(len(base)), base, threads=given["threads"])

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """L is the expansion."""
        self._index.expansion_search = L
        return self._index.search(queries, k, threads=threads).keys


class Faiss(_InMemory):
    """faiss's HNSW over whole vectors."""

    def fill(self, base: Any, given: Mapping[str, Any]) -> None:
        """M as hnswlib's."""
        import faiss

        faiss.omp_set_num_threads(given["threads"])
        self._index = faiss.IndexHNSWFlat(base.shape[1], given["degree"] // 2)
        self._index.hnsw.efConstruction = given["build_list"]
        self._index.add(base)

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """L is efSearch."""
        import faiss

        faiss.omp_set_num_threads(threads)
        self._index.hnsw.efSearch = L
        return self._index.search(queries, k)[1]


class Ours:
    """navis itself, by the same protocol; `session` are options of `Index.open`."""

    def build(self, base: Any, folder: Path, given: Mapping[str, Any]) -> None:
        """Build."""
        from navis import Index

        options = {key: given[key] for key in ("degree", "build_list", "code_bytes", "threads")}
        Index.build(folder / "index", base, **options, **given.get("build", {})).close()

    def open(self, folder: Path, given: Mapping[str, Any]) -> None:
        """Open readonly."""
        from navis import Index

        session = {"beam": given["beam"], **given.get("session", {})}
        self._index = Index.open(folder / "index", readonly=True, **session)

    def search(self, queries: Any, k: int, L: int, threads: int) -> Any:
        """Search all at once."""
        return self._index.search(queries, k, L=L, threads=threads)[0]


SYSTEMS: dict[str, type[System]] = {
    "diskannpy-rust": DiskAnn,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "faiss": Faiss,
    "navis": Ours,
}


def _spent(work: Any) -> dict[str, Any]:
    """Do some work; give what it took and, as `result`, what it gave."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    now = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "result": result,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "read_bytes": (now.ru_inblock - usage.ru_inblock) * 512,
        "peak_rss": now.ru_maxrss * 1024,
    }


def _answer(system: System, given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    if given["do"] == "search":
        queries = np.load(given["queries"])
        took = _spent(lambda: system.search(queries, given["k"], given["L"], given["threads"]))
        np.save(given["out"], np.asarray(took.pop("result")).astype(np.int64))
        return took
    folder = Path(given["folder"])
    if given["do"] == "build":
        base = np.load(given["base"])[: given["rows"]]
        took = _spent(lambda: system.build(base, folder, given))
    else:
        took = _spent(lambda: system.open(folder, given))
    took.pop("result")
    return took


def serve(name: str) -> None:
    """Be that system: answer requests until standard input ends."""
    # Libraries print what they like; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    system = SYSTEMS[name]()
    for line in sys.stdin:
        try:
            answer = _answer(system, json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Driver(contextlib.AbstractContextManager["Driver"]):
    """A system in a process of its own.

    Attributes:
        name: One of SYSTEMS.
    """

    def __init__(self, name: str, python: Path | str = sys.executable) -> None:
        import subprocess
        import tempfile

        self.name = name
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        if Path(python) != Path(sys.executable):
            environment.pop("PYTHONPATH", None)
        self._said = tempfile.TemporaryFile("w+")
        # -P: this file's folder holds modules that are no business of a peer.
        self._process = subprocess.Popen(
            [str(python), "-P", __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; a failure there is a Fault here."""
        from shorthaul.errors import Fault

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **given}, default=str) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            last = self._said.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise Fault(f"{self.name} died while asked to {do}: {last[0]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Fault(f"{self.name} cannot {do}: {answer['error']}")
        return answer

    def __exit__(self, *error: object) -> None:
        import subprocess

        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


def requirements() -> dict[str, dict[str, Any]]:
    """Give what each system is and needs, from `configs/peers.toml`."""
    from shorthaul import cli

    from navis.paths import resource as path_of

    return cli.read_toml(path_of("configs") / "peers.toml")


def python_of(name: str, folder: Path, *, make: bool = False) -> Path | None:
    """Give the Python that has a peer, or None where there is none.

    Args:
        name: One of SYSTEMS.
        folder: Of the virtual environments.
        make: Make the environment where it is missing, by pip.

    Raises:
        EnvironmentLack: It could not be made; the message has pip's last line.
    """
    import shutil
    import subprocess

    from shorthaul.errors import EnvironmentLack

    needs = requirements()[name]["requires"]
    if not needs:
        return Path(sys.executable)
    target = folder / f"{name}-{'-'.join(needs).translate(str.maketrans('=<>', '---'))}"
    python = target / "bin" / "python"
    if (target / "ready").is_file():
        return python
    if not make:
        return None
    shutil.rmtree(target, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(target)],
        [str(python), "-m", "pip", "install", "-q", *needs],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["pip said nothing"]
            raise EnvironmentLack(f"{name} cannot be installed from PyPI: {last[0]}")
    (target / "ready").write_text("")
    return python


if __name__ == "__main__":
    serve(sys.argv[1])
