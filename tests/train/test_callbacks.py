"""The same telemetry and export in the loops of others."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.nn import BitLinear, PackedBitLinear, QuantLinear
from bitnet_torch.train.config import TernaryConfig
from bitnet_torch.train.hooks import TernaryHooks, export_packed
from bitnet_torch.train.telemetry import Telemetry
from tests.bits import same_bits
from tests.models.tiny import tiny_model

IDS = torch.randint(256, (24, 9), generator=torch.Generator().manual_seed(0))


def own_model():
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64}
    return tiny_model(
        **sizes, dtype=torch.float32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip


def loss_of(model, windows):
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_packed_as_trained(folder, model):
    """The folder holds the codes and the scale of every ternary layer, to the bit."""
    loaded = bt.load(folder).model
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BitLinear)}
    packed = {n: m for n, m in loaded.named_modules() if isinstance(m, PackedBitLinear)}
    assert layers.keys() == packed.keys()
    for name, layer in layers.items():
        want = layer.packed()
        assert same_bits(packed[name].weight, want.weight)
        assert same_bits(packed[name].weight_scale.reshape(()), want.weight_scale.reshape(()))
    return loaded


def test_a_plain_loop_switches_warms_up_measures_and_exports(tmp_path):
    model = own_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hooks = TernaryHooks(
        ternary=TernaryConfig(warmup=2),
        qat_start=2,
        telemetry_every=3,
        metrics=tmp_path / "m.jsonl",
        export=tmp_path / "packed",
    )
    kinds = []
    for step in range(6):
        hooks.before_step(model, step)
        layers = [m for m in model.modules() if isinstance(m, BitLinear)]
        kinds.append((len(layers), {getattr(m, "strength", None) for m in layers}))
        optimizer.zero_grad()
        loss = loss_of(model, IDS[:4])
        loss.backward()
        optimizer.step()
        hooks.after_step(model, step + 1, {"loss": loss.item(), "epoch": 1})
    assert kinds == [(0, set())] * 2 + [(7, {0.0}), (7, {0.5})] + [(7, {None})] * 2
    hooks.finish(model)
    written = rows(tmp_path / "m.jsonl")
    assert [r["step"] for r in written if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert not any("epoch" in r for r in written)
    measured = {r["step"]: r["telemetry"] for r in written if "telemetry" in r}
    assert list(measured) == [3, 6]
    assert measured[6]["zero_fraction"] == Telemetry().measure(model, 6)["zero_fraction"]
    assert (tmp_path / "m.png").exists()
    loaded = assert_packed_as_trained(tmp_path / "packed", model)
    assert same_bits(loaded(IDS[:2]), model(IDS[:2]))


def test_a_continued_run_finds_the_form_of_its_step():
    hooks = TernaryHooks(ternary=TernaryConfig(warmup=4), qat_start=2)
    model = own_model()
    hooks.before_step(model, 4)
    assert {m.strength for m in model.modules() if isinstance(m, QuantLinear)} == {0.5}
    model = own_model()
    hooks.before_step(model, 40)
    assert sum(type(m) is BitLinear for m in model.modules()) == 7


@pytest.mark.parametrize(
    ("ternary", "says"),
    [
        (TernaryConfig(quantizer="lsq"), "quantizer='lsq' brings new parameters"),
        (TernaryConfig(sub_norms=True), "sub_norms=True brings new parameters"),
    ],
)
def test_a_switch_that_brings_parameters_is_refused(ternary, says):
    with pytest.raises(ConfigurationError, match=says):
        TernaryHooks(ternary=ternary)


def test_a_model_without_a_folder_layout_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="a Sequential has no model folder"):
        export_packed(nn.Sequential(BitLinear(4, 4)), tmp_path / "x")


def hf_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def hf_trainer(model, folder, callback, **settings):
    import transformers

    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    data = [{"input_ids": ids, "labels": ids} for ids in IDS]
    return transformers.Trainer(model, args, train_dataset=data, callbacks=[callback])


# Warnings of transformers and accelerate about their own calls are not this project's.
@pytest.mark.filterwarnings("ignore")
def test_hugging_faces_trainer_switches_measures_and_exports(tmp_path):
    from bitnet_torch.train.hf_callback import HuggingFaceCallback

    model = hf_model()
    callback = HuggingFaceCallback(
        ternary=TernaryConfig(),
        qat_start=2,
        telemetry_every=2,
        metrics=tmp_path / "m.jsonl",
        export=tmp_path / "packed",
    )
    hf_trainer(model, tmp_path / "out", callback, max_steps=6, save_strategy="no").train()
    written = rows(tmp_path / "m.jsonl")
    assert [r["step"] for r in written if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert all("learning_rate" in r for r in written if "loss" in r)
    measured = {r["step"]: r["telemetry"] for r in written if "telemetry" in r}
    # Not twice, although the Trainer's log and the end of a step both come by.
    assert [r["step"] for r in written if "telemetry" in r] == [4, 6]
    assert measured[6]["flips_per_step"] is not None
    assert measured[6]["zero_fraction"] == Telemetry().measure(model, 6)["zero_fraction"]
    loaded = assert_packed_as_trained(tmp_path / "packed", model)
    with torch.no_grad():
        want = model(input_ids=IDS[:2]).logits
    # Codes and scales are equal; the float parts are sums of at most 64 terms in other orders,
    # which may move an activation across a rounding tie: one quantum of 127.
    assert float((loaded(IDS[:2]) - want).abs().max()) < float(want.abs().max()) / 127
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.filterwarnings("ignore")
def test_layers_of_another_form_in_a_model_of_transformers_are_named(tmp_path):
    model = hf_model()
    bt.convert(model, granularity="row")
    with pytest.raises(ConfigurationError, match=r"q_proj is BitLinear\(.*granularity='row'"):
        export_packed(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def lightning_run(folder, steps, resume=None):
    """Train the model in Lightning, with a checkpoint after the first epoch of six steps."""
    import lightning.pytorch as pl

    from bitnet_torch.train.lightning_callback import LightningCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = own_model()

        def training_step(self, batch, batch_idx):
            return loss_of(self.model, batch[0])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    folder.mkdir(exist_ok=True)
    callback = LightningCallback(
        ternary=TernaryConfig(warmup=2),
        qat_start=2,
        telemetry_every=2,
        metrics=folder / "m.jsonl",
        export=folder / "packed",
    )
    saving = pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=6, save_top_k=-1)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, saving],
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IDS), batch_size=4)
    module = Module()
    trainer.fit(module, data, ckpt_path=resume)
    return module.model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightnings_trainer_switches_measures_exports_and_resumes(tmp_path):
    model = lightning_run(tmp_path / "whole", 8)
    written = rows(tmp_path / "whole" / "m.jsonl")
    assert [r["step"] for r in written if "loss" in r] == list(range(1, 9))
    measured = {r["step"]: r["telemetry"] for r in written if "telemetry" in r}
    assert list(measured) == [4, 6, 8]
    loaded = assert_packed_as_trained(tmp_path / "whole" / "packed", model)
    assert same_bits(loaded(IDS[:2]), model(IDS[:2]))
    (checkpoint,) = (tmp_path / "whole").glob("*.ckpt")
    again = lightning_run(tmp_path / "again", 8, resume=checkpoint)
    states = zip(model.parameters(), again.parameters(), strict=True)
    assert all(same_bits(a, b) for a, b in states)
    rest = [r for r in rows(tmp_path / "again" / "m.jsonl") if "telemetry" in r]
    assert rest == [r for r in written if "telemetry" in r and r["step"] > 6]


@pytest.mark.slow
def test_lightnings_averages_are_warned_of():
    import lightning.pytorch as pl

    from bitnet_torch.train.lightning_callback import LightningCallback

    class Averager:
        callbacks = (pl.callbacks.StochasticWeightAveraging(1e-3),)

    with pytest.warns(UserWarning, match="StochasticWeightAveraging averages latent weights"):
        LightningCallback().on_fit_start(Averager(), None)
