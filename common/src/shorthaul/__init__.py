"""What the shorthaul artifacts share, and nothing else.

Importing the package imports none of its modules: a command that only prints help must not pay for
matplotlib or torch.
"""

__version__ = "0.1.0"
