"""The search for secrets finds them in each spelling and place."""

import base64

import pytest

from tests.faults.leaks import Sight, forms


@pytest.mark.parametrize("before", [b"", b"x", b"user:"])
@pytest.mark.parametrize("behind", [b"", b"y", b"yz"])
def test_the_forms_find_a_secret_inside_other_base64(before: bytes, behind: bytes) -> None:
    secret = b"a secret with <?> in it"
    text = base64.b64encode(before + secret + behind)
    assert any(form in text for form in forms(secret))


def test_a_secret_and_a_token_are_told_with_their_place() -> None:
    sight = Sight()
    sight.add("a log", b"logged in with pass%23word")
    sight.add("a report", b"token AUTH_tkdeadbeef is refused")
    sight.add("a list", b"nothing")
    assert sight.leaks({"password": b"pass#word"}) == ["a token in a report", "password in a log"]


def test_what_others_may_read_is_told() -> None:
    sight = Sight(modes={"private": 0o700, "journal": 0o640})
    assert sight.open_to_others() == ["journal 640"]
