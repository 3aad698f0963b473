"""What a test needs and does not find: a skip, or a failure where INTROSPECT_REQUIRE is set."""

import pytest
from conftest import existing


def test_a_missing_checkpoint_is_a_skip(tmp_path):
    with pytest.raises(pytest.skip.Exception, match="nowhere is not there: fetch it"):
        existing(tmp_path / "nowhere", "fetch it", required=False)


def test_a_missing_checkpoint_that_is_required_is_a_failure(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="nowhere is not there: fetch it"):
        existing(tmp_path / "nowhere", "fetch it", required=True)


def test_what_is_there_is_given_back(tmp_path):
    assert existing(tmp_path, "", required=True) == tmp_path
