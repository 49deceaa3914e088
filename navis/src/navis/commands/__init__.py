"""The verbs of ``navis``; each imports what it needs and nothing else."""
