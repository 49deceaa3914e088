"""``navis tune``: the smallest search list that reaches a recall."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from shorthaul.cli import Common, emit
from shorthaul.errors import UserError

from navis.commands.session import SessionFlags

if TYPE_CHECKING:
    from navis.tuning import Trial


@dataclass(kw_only=True)
class Tune(SessionFlags, Common):
    """Find the smallest search list that reaches a recall; kept for search --target-recall."""

    index: tyro.conf.Positional[Path]
    """Index folder; another process may have it open."""
    target_recall: float
    """Share of the k nearest to be found, like 0.95."""
    k: int = 10
    """Neighbours per query."""
    queries: str | None = None
    """File of queries like those to come; by default stored vectors, each held out."""
    truth: str | None = None
    """Truth set of the queries; computed by default, from all vectors."""

    def run(self) -> None:
        """Try, print what was tried and what is kept."""
        from shorthaul.progress import bar

        from navis import tuning
        from navis.formats import read_truth, read_vectors

        if self.truth is not None and self.queries is None:
            raise UserError("--truth without --queries: give both")
        trials: list[Trial] = []
        with self.open(self.index, readonly=True) as index, bar(None, "tune") as shown:

            def say(trial: Trial) -> None:
                trials.append(trial)
                shown.update(1)
                shown.set_postfix(L=trial.L, recall=f"{trial.recall:.4f}")

            tuned = tuning.tune(
                index,
                self.target_recall,
                k=self.k,
                queries=None if self.queries is None else read_vectors(self.queries),
                truth=None if self.truth is None else read_truth(self.truth),
                threads=self.threads,
                seed=self.seed,
                say=say,
            )
        found = {
            **dataclasses.asdict(tuned),
            "trials": [dataclasses.asdict(trial) for trial in trials],
        }
        emit(found, self.json, table(trials, tuned.L, tuned.margin))


def table(trials: list[Trial], L: int, margin: float | None) -> str:
    """Give the trials as aligned text, the kept one marked."""
    lines = ["    L  margin  recall  requests"]
    for t in sorted(trials, key=lambda t: (t.L, t.margin or 0.0)):
        share = "     -" if t.margin is None else f"{t.margin:6.3f}"
        mark = "  kept" if (t.L, t.margin) == (L, margin) else ""
        lines.append(f"{t.L:>5}  {share}  {t.recall:.4f}  {t.requests:>8.1f}{mark}")
    return "\n".join(lines)
