"""What the README shows runs as it stands."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs_as_a_script(tmp_path: Path, script: Any) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    done = script(tmp_path / "example.py", example)
    assert done.returncode == 0, done.stderr
    plan, loss = done.stdout.split()
    assert re.fullmatch(r"\d+-\d+x\d(\|\d+-\d+x\d)*", plan)
    assert 0 < float(loss) < 1
