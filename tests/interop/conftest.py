import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _eager():
    """Run the small functions that transformers compiles as they are: compiling takes minutes."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
