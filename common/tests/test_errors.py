import pickle

import pytest
from shorthaul.errors import EnvironmentLack, Fault, ShorthaulError, UserError


@pytest.mark.parametrize(("kind", "code"), [(Fault, 1), (UserError, 2), (EnvironmentLack, 3)])
def test_exit_codes(kind: type[ShorthaulError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, ShorthaulError)


def test_message_is_one_line() -> None:
    assert str(UserError("block 3\n  wants 4\n\nnot 5\n")) == "block 3; wants 4; not 5"


def test_survives_pickling_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(UserError("a value")))
    assert type(copy) is UserError
    assert str(copy) == "a value"
