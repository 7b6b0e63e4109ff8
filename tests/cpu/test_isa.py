import pytest

from bitnet_torch.errors import ConfigurationError


def test_the_fastest_instruction_set_is_in_use(built):
    from bitnet_torch.cpu import isa

    assert isa.available()[0] == "scalar"
    assert isa.current() == isa.available()[-1]


def test_a_forced_instruction_set_ends_with_the_block(built):
    from bitnet_torch.cpu import isa

    before = isa.current()
    with isa.forced("scalar"):
        assert isa.current() == "scalar"
    assert isa.current() == before


def test_an_unknown_instruction_set_is_refused_with_the_known_ones(built):
    from bitnet_torch.cpu import isa

    with pytest.raises(ConfigurationError, match="scalar"), isa.forced("abacus"):
        pass
