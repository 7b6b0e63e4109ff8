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


def _on(name):
    """Run the test on instruction set ``name``, if this machine has it."""
    from bitnet_torch.cpu import isa as switch

    if name not in switch.available():
        pytest.skip(f"no {name} on this CPU")
    with switch.forced(name):
        yield name


@pytest.fixture(params=["scalar", "avx2"])
def isa(built, request):
    """Run the test on each instruction set that has kernels of its own for everything."""
    yield from _on(request.param)


@pytest.fixture(params=["scalar", "avx2", "avxvnni", "avx512vnni", "neondot"])
def product_isa(built, request):
    """Run the test on each instruction set that has a ternary product of its own."""
    yield from _on(request.param)
