"""Speed-up over DP as the batch grows."""

from __future__ import annotations

from typing import Any

from shorthaul.experiments import Context, Experiment, Figure, Summary

from pipe_bd.bench import Entry, bench
from pipe_bd.experiments._shared import WHY_OURS_DIFFER, bench_table, with_range
from pipe_bd.models import build


def run(context: Context) -> Summary:
    """One interleaved bench per batch size."""
    s = context.settings
    metrics: dict[str, Any] = {"dp_over": {}}
    tables, ratios = [], {name: [] for name in ("joint", "dpu", "ahd")}
    noise = None
    for batch in s["batches"]:
        task = build(s["model"], seed=context.seed, batch=batch, steps=s["steps"], optimizer="sgd")
        entries = [Entry(name, name) for name in ("dp", *ratios)]
        result = bench(task, 2, [*entries, Entry("ahd again", "ahd")], s["repetitions"])
        context.run.metric(batch=batch, **result.to_dict())
        for name, values in ratios.items():
            values.append(result.ratio("dp", name))
        here = result.noise("ahd", "ahd again")
        noise = here if noise is None or here["spread"] > noise["spread"] else noise
        tables.append(bench_table(result, f"batch_{batch}", f"batch of {batch}"))
    metrics["dp_over"] = {name: [r["median"] for r in values] for name, values in ratios.items()}
    metrics["least_dp_over_ahd"] = min(metrics["dp_over"]["ahd"])
    figure = Figure(
        "batch",
        f"{s['model']}: speed-up over DP by batch size",
        "lines",
        list(s["batches"]),
        "rows per batch",
        "DP time / schedule's time, CPU of the busiest rank",
        [with_range(name, values) for name, values in ratios.items()],
        note=WHY_OURS_DIFFER,
        log_x=True,
    )
    return Summary(metrics, [figure], tables, noise=noise)


EXPERIMENT = Experiment(
    id="batch_sensitivity",
    title="Sensitivity to the batch size",
    source="Pipe-BD, batch-size sensitivity (scripts: 128–512 on GPUs)",
    run=run,
    scales={
        "smoke": {"model": "vgg6", "batches": [8, 16], "steps": 3, "repetitions": 1},
        "small": {"model": "vgg6", "batches": [8, 16, 32, 64, 128], "steps": 8, "repetitions": 5},
    },
    minutes={"smoke": 0.5, "small": 4},
)
