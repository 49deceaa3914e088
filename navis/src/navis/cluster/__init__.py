"""An index sharded over Ray actors: ids are routed, searches scattered, gathered and merged.

`Cluster` has the calls of `navis.Index`; each shard is such an index, open for writing in a process
of its own. Needs the extra: ``pip install 'shorthaul-navis[cluster]'``.
"""

from navis.cluster.client import Cluster
from navis.cluster.errors import ShardLost

__all__ = ["Cluster", "ShardLost"]
