"""The shards' processes: asked all at once, waited for, known to be lost, started again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shorthaul.errors import Fault

from navis.cluster import runtime
from navis.cluster.errors import ShardLost
from navis.cluster.manifest import Manifest
from navis.errors import Closed

Arguments = Callable[[int], tuple[Any, ...]]

_PROBE_S = 5.0  # for an answer when looking who is there; the busy may be slower


def nothing(number: int) -> tuple[Any, ...]:
    """No arguments for any shard."""
    return ()


@dataclass
class Gathered:
    """What came back, by shard."""

    answers: dict[int, Any] = field(default_factory=dict)
    dead: dict[int, str] = field(default_factory=dict)
    late: dict[int, str] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)


def gather(
    actors: Mapping[int, Any], method: str, arguments: Arguments, timeout_s: float | None = None
) -> Gathered:
    """Ask actors at once and wait for all: afterwards nothing goes on that is not `late`."""
    ray, found = runtime.imported(), Gathered()
    until = None if timeout_s is None else time.monotonic() + timeout_s
    asked = {}
    for number, actor in actors.items():
        try:
            asked[number] = actor.call.remote(method, *arguments(number))
        except Exception as error:
            found.errors.append(_fault(number, error))
    for number, ref in asked.items():
        left = None if until is None else max(0.0, until - time.monotonic())
        try:
            kind, answer = ray.get(ref, timeout=left)
        except ray.exceptions.GetTimeoutError:
            found.late[number] = f"no answer within {timeout_s:g} s"
        except runtime.lost_errors() as error:
            found.dead[number] = _why(error)
        except Exception as error:
            found.errors.append(_fault(number, error))
        else:
            if kind is None:
                found.answers[number] = answer
            else:
                found.errors.append(kind(f"shard {number}: {answer}"))
    return found


class Shards:
    """The processes of a cluster's shards, by number."""

    def __init__(self, path: Path, about: Manifest) -> None:
        self._path, self._about = path, about
        self._actors: dict[int, Any] = {}
        self._lost: dict[int, str] = {}
        self._state, self._recovering = threading.Lock(), threading.Lock()
        self._ended = False

    @property
    def lost(self) -> tuple[int, ...]:
        """Those found lost and not yet brought back."""
        with self._state:
            return tuple(sorted(self._lost))

    def ask(
        self,
        method: str,
        arguments: Arguments = nothing,
        numbers: Iterable[int] | None = None,
        *,
        partial: bool = False,
        timeout_s: float | None = None,
    ) -> dict[int, Any]:
        """Ask some shards, or all; gives their answers.

        With `partial` those that are lost or late are left out; otherwise that is a `ShardLost`,
        before any is asked where it is known.
        """
        with self._state:
            if self._ended:
                raise Closed(f"{self._path}: the cluster has been closed")
            wanted = sorted(self._actors if numbers is None else numbers)
            known = {number: self._lost[number] for number in wanted if number in self._lost}
            actors = {number: self._actors[number] for number in wanted if number not in known}
        if known and not partial:
            raise self._shard_lost(known)
        found = gather(actors, method, arguments, timeout_s)
        with self._state:
            for number, why in found.dead.items():
                if self._actors.get(number) is actors[number]:  # not brought back meanwhile
                    self._lost[number] = why
        missing = {**found.dead, **found.late}
        if missing and not partial:
            raise self._shard_lost(missing)
        if found.errors:
            raise found.errors[0]
        return found.answers

    def start(self, numbers: Iterable[int], method: str, arguments: Arguments) -> None:
        """Start processes and call a first method in each; only then others see them.

        Each shard for itself: when one fails, the others are there.
        """
        about, made, errors = self._about, dict[int, Any](), list[Exception]()
        try:
            for number in numbers:
                try:
                    made[number] = runtime.spawn(
                        self._path, about.cluster, number, about.shards, about.nodes[number]
                    )
                except Fault as error:
                    errors.append(error)
            born = gather(made, "ping", nothing, runtime.START_S)
            there = {number: made[number] for number in born.answers}
            found = gather(there, method, arguments)
        except BaseException:
            for actor in made.values():
                runtime.kill(actor)
            raise
        with self._state:
            for number in found.answers:
                self._actors[number] = made.pop(number)
                self._lost.pop(number, None)
        for actor in made.values():
            runtime.kill(actor)
        errors += found.errors + born.errors
        if errors:
            raise errors[0]
        if missing := {**born.dead, **born.late, **found.dead}:
            raise self._shard_lost(missing)

    def recover(self, method: str, arguments: Arguments) -> tuple[int, ...]:
        """Look which are lost and start them again; gives which they were."""
        with self._recovering:
            self.ask("ping", partial=True, timeout_s=_PROBE_S)
            lost = self.lost
            for number in lost:
                runtime.kill(self._actors[number])
            self.start(lost, method, arguments)
            return lost

    def end(self) -> None:
        """End all processes; what is asked from here on is refused."""
        with self._state:
            self._ended = True
        for actor in self._actors.values():
            runtime.kill(actor)

    def tell(self, method: str, arguments: Arguments = nothing) -> None:
        """Ask whoever is there, when something else has failed that matters more."""
        with contextlib.suppress(Exception):
            self.ask(method, arguments, partial=True)

    def _shard_lost(self, reasons: Mapping[int, str]) -> ShardLost:
        advice = "recover() starts what has died again, on its files"
        return ShardLost(reasons, self._about.shards, advice)


def _fault(number: int, error: Exception) -> Fault:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Fault(f"shard {number}: {lines[-1]}")


def _why(error: Exception) -> str:
    """Ray's reason in a few words."""
    lines = (line.strip() for line in str(error).splitlines())
    pid = next((line for line in lines if line.startswith("pid:")), "")
    return f"its process died ({pid.replace(':', '')})" if pid else "its process died"
