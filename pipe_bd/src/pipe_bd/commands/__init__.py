"""The verbs of ``pipe-bd``; each imports what it needs and nothing else."""
