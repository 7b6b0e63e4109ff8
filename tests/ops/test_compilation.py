"""Who listens hears of what its own thread compiles, while it listens."""

import threading

from bitnet_torch.ops import compilation
from bitnet_torch.ops.compilation import Compiled, note, noting, register_compiler


def test_who_listens_hears_of_every_kernel_until_the_block_ends(caplog):
    outer, inner = [], []
    with caplog.at_level("INFO", compilation.__name__), noting(outer):
        note("a", 1.5)
        with noting(inner):
            note("b", 2)
    note("c", 3)
    assert outer == [Compiled("a", 1.5), Compiled("b", 2)]
    assert inner == [Compiled("b", 2)]
    assert "compiled a in 1.50 s" in caplog.text


def test_another_threads_kernels_are_its_own():
    found = []
    with noting(found):
        thread = threading.Thread(target=note, args=("a", 1))
        thread.start()
        thread.join()
    assert found == []


def test_a_backend_is_made_to_speak_before_somebody_listens(monkeypatch):
    monkeypatch.setattr(compilation, "_listeners", [])
    calls = []

    def listen():
        calls.append(1)

    register_compiler(listen)
    register_compiler(listen)
    assert calls == []
    for _ in range(2):
        with noting([]):
            pass
    assert calls == [1, 1]
