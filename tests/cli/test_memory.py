"""`bitnet memory -- COMMAND` runs the command and explains its memory."""

import json
import pickle

import pytest

from bitnet_torch.assets import bundled_model
from bitnet_torch.cli.main import main

DEMO = ["demo", "--tokens", "4"]


def test_a_generation_is_explained_by_modules_operators_and_leases(capsys, tmp_path):
    page, trace, snapshot = (tmp_path / name for name in ("m.html", "m.json", "m.pickle"))
    status = main(
        [
            *("memory", "--html", str(page), "--chrome-trace", str(trace)),
            *("--snapshot", str(snapshot), "--", *DEMO),
        ]
    )
    out = capsys.readouterr().out
    assert status == 0
    assert "CPU memory, exact" in out or "inexact, because" in out
    assert "mlp" in out
    assert "weights in PackedBitLinear" in out
    assert "cpu workspace" in out
    assert "unexplained" in out
    assert "pool: " in out
    assert f"wrote {page}" in out
    assert "<svg" in page.read_text()
    assert "What the memory is for" in page.read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    assert pickle.loads(snapshot.read_bytes())["device_traces"][0]


def test_the_report_as_json_is_all_there_is_on_stdout(capsys):
    assert main(["memory", "--json", "--rows", "3", "--", *DEMO]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["command"] == DEMO
    assert report["total"]["peak"] > 0
    assert len(report["modules"]) == 3
    assert report["stats"]["pool_peak"] > 0
    assert captured.err


def test_weights_cache_and_workspaces_explain_a_generation(capsys):
    words = ["generate", str(bundled_model()), "ROMEO", "--max-new-tokens", "20"]
    assert main(["memory", "--json", "--", *words]) == 0
    account = json.loads(capsys.readouterr().out)["account"]
    assert {"weights in PackedBitLinear", "kv cache", "cpu workspace"} <= set(account["parts"])
    assert account["total"] == sum(account["parts"].values()) + account["unexplained"]
    assert account["unexplained"] < account["total"] / 20


def test_a_python_file_runs_as_a_script_with_its_arguments(capsys, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, torch\n"
        "assert __name__ == '__main__' and sys.argv[1:] == ['--size', '7']\n"
        "kept = torch.ones(12345)\n"
        "sys.exit(3)\n"
    )
    assert main(["memory", "--", str(script), "--size", "7"]) == 3
    assert "aten::ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "after -- comes a command"),
        (["--"], "after -- comes a command"),
        (["--", "memory"], "'memory' cannot be tracked"),
        (["--", "absent.py"], "absent.py: there is no such file"),
        (["--rows", "0", "--", "demo"], "--rows must be at least 1, got 0"),
        (["--html", "no/such/folder/x.html", "--", "demo"], "there is no folder"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(capsys, words, says):
    assert main(["memory", *words]) == 1
    assert says in capsys.readouterr().err


def test_the_status_of_the_command_is_kept(capsys):
    assert main(["memory", "--", "generate", "no-such-folder", "x"]) == 1
    captured = capsys.readouterr()
    assert "no-such-folder" in captured.err
    assert "CPU memory" in captured.out
