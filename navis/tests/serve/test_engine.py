from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from navis import Index
from navis.serve.engine import Engine
from navis.serve.errors import Refused


def test_searches_do_not_wait_for_changes(engine: Engine) -> None:
    held = threading.Event()

    async def main() -> None:
        changes = [asyncio.create_task(engine.write(lambda _: held.wait(30))) for _ in range(9)]
        await asyncio.sleep(0)  # they have begun
        assert await engine.read(len) == 300
        assert await engine.watch(len) == 300
        held.set()
        assert await asyncio.gather(*changes) == [True] * 9

    asyncio.run(main())


def test_closing_waits_for_what_is_under_way(index: Index) -> None:
    engine = Engine(index, threads=1)
    done = []
    entered = threading.Event()

    def slow(index: Index) -> None:
        entered.set()
        while not engine.stopping:
            time.sleep(0.01)
        index.insert([999], np.ones((1, 16), np.float32))
        done.append(999 in index)

    async def main() -> None:
        change = asyncio.create_task(engine.write(slow))
        await asyncio.to_thread(entered.wait)
        await asyncio.to_thread(engine.close)
        await change

    asyncio.run(main())
    assert done == [True]


def test_a_closed_engine_answers_503(index: Index) -> None:
    engine = Engine(index)
    engine.close()
    with pytest.raises(Refused, match="shutting down") as refused:
        asyncio.run(engine.read(len))
    assert refused.value.status == 503
    engine.close()  # twice does no harm


def test_a_read_only_engine_changes_nothing(index: Index) -> None:
    engine = Engine(index, readonly=True)
    with pytest.raises(Refused, match="read-only") as refused:
        asyncio.run(engine.write(len))
    assert refused.value.status == 403
    engine.close()
