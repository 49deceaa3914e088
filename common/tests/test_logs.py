import logging

import pytest
from shorthaul import logs


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> object:
    logger = logging.getLogger("shorthaul")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def test_lines_carry_the_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    logs.setup()
    logs.get("pipe_bd.relay").info("said by every rank")
    logs.get("pipe_bd.relay").warning("own")
    said = capsys.readouterr().err
    assert "rank 3 shorthaul.pipe_bd.relay: own" in said
    assert "every rank" not in said


def test_without_ranks_no_rank_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    logs.setup()
    logs.setup()
    logs.get("shorthaul.records").info("once")
    logs.get("x").debug("hidden")
    said = capsys.readouterr().err
    assert said.count("once") == 1
    assert "rank" not in said
    assert "hidden" not in said


def test_verbose_shows_debug(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup(verbose=True)
    logs.get("x").debug("detail")
    assert "detail" in capsys.readouterr().err
