"""What every test gets: a seed, poisoned uninitialised memory, two threads."""

import pytest
import torch

from tests.metal_host import toolchain

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory():
    """Make torch.empty return NaN / max-int, so reading it is a failure and not a fluke."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    """Set the number of threads inside a test and restore it after."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items):
    """Begin with the longest, and skip what needs hardware that is not here, with its name."""
    # Last, they would keep one process busy while the other has nothing to do.
    items.sort(key=_limit, reverse=True)
    apple, shim = torch.backends.mps.is_available(), toolchain.reason_against()
    absent = {
        "cuda": (torch.cuda.is_available(), "no CUDA device"),
        "apple": (apple, "no Apple GPU"),
        "metal_host": (not shim, shim),
        "mps": (apple or not shim, f"no Apple GPU, and {shim}"),
    }
    for item in items:
        for mark, (present, reason) in absent.items():
            if item.get_closest_marker(mark) and not present:
                item.add_marker(pytest.mark.skip(reason=reason))


def _limit(item):
    mark = item.get_closest_marker("timeout")
    return mark.args[0] if mark else 0
