"""Real vectors, in minutes: verbs, adjectives and adverbs inserted into an index of nouns."""

from __future__ import annotations

from shorthaul.experiments import Experiment

from navis.experiments.insert_throughput import COMMON, run

EXPERIMENT = Experiment(
    id="wordnet_inserts",
    title="Inserts of real text vectors, packed against full, in minutes",
    source="NAVIS, abstract; on WordNet's glosses, 768 dimensions",
    run=run,
    scales={
        "smoke": {
            **COMMON, "sets": {"W768": [500, 100]}, "queries": 50, "budget": 8.0, "rounds": 1,
            "beams": [4], "in_flights": [4], "tuning": 16, "inserts": 48, "inserts_beside": 48,
            "seconds": 0.3,
        },
        # Of so few vectors a tenth would not hold the buffers of two threads.
        "small": {
            **COMMON, "sets": {"W768": [5500, 2400]}, "queries": 300, "budget": 0.45, "rounds": 5,
            "beams": [4], "in_flights": [4], "tuning": 64, "inserts": 1200,
            "inserts_beside": 1200, "seconds": 1.5,
        },
    },
    minutes={"smoke": 0.3, "small": 4},
)  # fmt: skip
