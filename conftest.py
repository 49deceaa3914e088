"""Imports the installed packages before pytest names a test after its folder.

With `--import-mode=importlib`, the test pipe_bd/tests/test_plan.py becomes the module
`pipe_bd.tests.test_plan`, and its parent, were it not there yet, an empty namespace made of the
folder pipe_bd/ instead of the package.
"""

import importlib
from pathlib import Path

for folder in Path(__file__).parent.glob("*/src"):
    for package in folder.glob("*/__init__.py"):
        module = importlib.import_module(package.parent.name)
        assert module.__file__, f"{package.parent.name} is not installed; run: make setup"
