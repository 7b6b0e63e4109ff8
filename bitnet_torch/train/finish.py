"""The end of a run: the last evaluation, the exported model, the pictures and the record."""

from __future__ import annotations

from bitnet_torch.train.curve import draw_curve
from bitnet_torch.train.evaluate import bits_per_byte
from bitnet_torch.train.provenance import versions
from bitnet_torch.train.result import RunResult, export
from bitnet_torch.train.state import TrainState
from bitnet_torch.train.telemetry_plot import draw_telemetry


def finish(state: TrainState) -> RunResult:
    """Evaluate on the whole held-out text, export, draw the pictures, write the record."""
    config, data = state.config, state.config.data
    seconds = state.seconds
    figure = bits_per_byte(
        state.model,
        state.corpus.held_out,
        context=data.context,
        stride=max(data.context // 2, 1),
        batch=data.batch,
        progress=True,
    )
    model, form = export(state.model, state.out / "model", config)
    length = len(state.corpus.held_out)
    is_text = data.kind == "bytes"
    result = RunResult(
        out=str(state.out),
        model=model,
        form=form,
        held_out_bits_per_byte=figure if is_text else None,
        held_out_bytes=length if is_text else None,
        held_out_bits_per_token=None if is_text else figure,
        held_out_tokens=None if is_text else length,
        steps=state.step,
        tokens=state.step * data.batch * data.context,
        seconds=seconds,
        seed=config.run.seed,
        commit=state.commit,
        versions=versions(),
        config=config.to_dict(),
        recoveries=[str(step) for step in state.recoveries],
    )
    draw_curve(state.metrics_path, result, state.out / "curve.png")
    draw_telemetry(state.metrics_path, state.out / "telemetry.png")
    result.write()
    return result
