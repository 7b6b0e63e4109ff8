import pytest

from bitnet_torch.cpu import load
from bitnet_torch.errors import BackendUnavailableError


@pytest.fixture(scope="session")
def built():
    """Skip where the installation has no library: that it says so is tested elsewhere."""
    try:
        load()
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["scalar", "avx2"])
def isa(built, request):
    """Run the test on each instruction set that this machine has."""
    from bitnet_torch.cpu import isa as switch

    if request.param not in switch.available():
        pytest.skip(f"this machine has no {request.param}")
    with switch.forced(request.param):
        yield request.param
