"""Imports the installed packages before pytest names a test after its folder.

With `--import-mode=importlib`, the test pipe_bd/tests/test_plan.py becomes the module
`pipe_bd.tests.test_plan`, and its parent, were it not there yet, an empty namespace made of the
folder pipe_bd/ instead of the package.
"""

import importlib
import signal
from pathlib import Path

# A shell that starts it in the background makes a process deaf to Ctrl-C, and with it whatever it
# starts: the tests that interrupt something would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

for folder in Path(__file__).parent.glob("*/src"):
    for package in folder.glob("*/__init__.py"):
        module = importlib.import_module(package.parent.name)
        assert module.__file__, f"{package.parent.name} is not installed; run: make setup"
