"""llama.cpp computes the models that we write; needs the extra ``peers``."""

from importlib.util import find_spec

import pytest
import torch

from bitnet_torch.io import ByteTokenizer, export_gguf, load_gguf
from tests.io.gguf.models import small_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llama_cpp") is None, reason="no llama-cpp-python (extra peers)"),
]
TOKENS = 24
LAYERS = 2
# Both round every activation of seven products a layer to 8 bits, by scales that differ (of a
# block of 256, of a token): uniform errors of a step, which is the largest activation / 127, six
# times their root mean square at most for rows of this width.
BOUND = (2 * 7 * LAYERS) ** 0.5 * 6 / (127 * 12**0.5)


@pytest.mark.parametrize("architecture", ["llama", "bitnet", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_has_our_logits(tmp_path, architecture, kind):
    import llama_cpp

    path = tmp_path / "m.gguf"
    model = small_model(architecture, vocab_size=256)
    export_gguf(model, path, kind, tokenizer=ByteTokenizer())
    ids = torch.randint(0, 256, (1, TOKENS))
    peer = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    assert peer.tokenize(b"abc\n", add_bos=False) == list(b"abc\n")
    peer.eval(ids[0].tolist())
    theirs = torch.from_numpy(peer.scores[:TOKENS].copy())
    with torch.inference_mode():
        ours = load_gguf(path, dtype=torch.float32)[0](ids)[0]
    error = (ours - theirs).square().mean().sqrt()
    assert error <= BOUND * theirs.square().mean().sqrt()
