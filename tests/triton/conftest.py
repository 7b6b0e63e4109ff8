"""Fixtures of the kernel tests."""

import pytest


@pytest.fixture
def subnormals():
    """Float32 subnormals are not flushed: there is no switch to set here."""
