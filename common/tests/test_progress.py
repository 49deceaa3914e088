import sys

import pytest
from shorthaul.progress import bar


def test_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(3, "steps") as steps:
        for _ in range(3):
            steps.update(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variable", "value"), [("SHORTHAUL_QUIET", "1"), ("RANK", "1"), (None, None)]
)
def test_shown_on_a_terminal_unless_asked_not_to(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str | None
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SHORTHAUL_QUIET", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if variable and value:
        monkeypatch.setenv(variable, value)
    with bar(3, "steps", initial=1) as steps:
        assert steps.disable is (variable is not None)
