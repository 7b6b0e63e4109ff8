import pytest

from tests.train.distributed.pair import Pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes in one gloo group."""
    processes = Pair(tmp_path_factory.mktemp("pair"))
    yield processes
    processes.close()
