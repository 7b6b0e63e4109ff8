"""The file of tuned rules: read only as it was written here, by this user, for this machine."""

import json
import multiprocessing
import os
import stat
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError

if sys.platform != "linux":
    pytest.skip("Triton exists for Linux only", allow_module_level=True)

from bitnet_torch_triton import policy
from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.aot.targets import ARCHS
from bitnet_torch_triton.rules import RULES
from bitnet_torch_triton.tune import store
from bitnet_torch_triton.tune.candidates import BUCKETS, Problem, candidates
from bitnet_torch_triton.tune.store import Environment, Tuned, keep, read, usable_rules

HERE = Environment("NVIDIA A100", "sm_80", "13000", "2.13.0", "3.9.0", "ab" * 32)


def tuned(n=2560, k=2560, bucket=0, which=1, arch=HERE.arch):
    problem = Problem(n, k, *BUCKETS[bucket])
    rule = candidates(problem, arch)[which]
    return Tuned(problem, rule.kernel, rule.config, 3.5, 4.0)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return HERE.file


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("bucket", range(len(BUCKETS)))
def test_every_candidate_survives_the_file(place, arch, bucket):
    here = replace(HERE, arch=arch)
    rules = candidates(Problem(2560, 2560, *BUCKETS[bucket]), arch)
    assert 1 < len(rules) <= 120
    assert len(set(rules)) == len(rules)
    for which in (0, len(rules) // 2, len(rules) - 1):
        one = tuned(bucket=bucket, which=which, arch=arch)
        keep([one], here)
        assert read(place, here) == [one]
        assert usable_rules(here) == (rules[which],)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tuned_row_serves_its_own_tokens_and_no_others(arch):
    for bucket, (least, most) in enumerate(BUCKETS):
        one = tuned(bucket=bucket, arch=arch)
        rule = one.problem.rule(one.kernel, one.config, arch)
        policy.prefer((rule,))
        for m in (1, 2, 8, 9, 16, 17, 512, 513, 9999):
            inside = least <= m and (most is None or m <= most)
            assert (policy.rule_for(rule.op, arch, m, 2560, 2560) == rule) == inside
        assert policy.rule_for(rule.op, arch, least, 2560, 2561) in RULES
    policy.prefer(())


def test_rules_of_other_problems_stay_and_of_the_same_are_replaced(place):
    first, second, other = tuned(), tuned(which=2), tuned(bucket=3)
    keep([first, other], HERE)
    keep([second], HERE)
    assert set(read(place, HERE)) == {second, other}


def test_nobody_else_may_enter_the_folder_or_read_the_file(place):
    before = os.umask(0)
    place.parent.mkdir(parents=True, mode=0o755)
    try:
        keep([tuned()], HERE)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (place.parent, place)]
    assert modes == [0o700, 0o600]
    assert {p.name for p in place.parent.iterdir()} == {"nvidia-a100.json", "nvidia-a100.lock"}


@pytest.mark.parametrize(("target", "mode"), [("file", 0o620), ("file", 0o602), ("folder", 0o770)])
def test_a_file_that_others_may_write_is_refused(place, caplog, target, mode):
    keep([tuned()], HERE)
    (place if target == "file" else place.parent).chmod(mode)
    assert usable_rules(HERE) == ()
    assert f"{place} is not used: others may write to" in caplog.text
    assert f"mode {mode:o}" in caplog.text


def test_a_file_of_another_user_is_refused(place, monkeypatch):
    keep([tuned()], HERE)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match=r"belongs to user \d+, this is 12345"):
        read(place, HERE)


@pytest.mark.parametrize("name", ["gpu", "arch", "driver", "torch", "triton", "kernels"])
def test_a_file_of_another_environment_is_refused_with_both_values(place, caplog, name):
    keep([tuned()], HERE)
    there = replace(HERE, **{name: "sm_86" if name == "arch" else "NVIDIA-A100"})
    assert usable_rules(there) == ()
    assert caplog.text.count("is not used") == 1
    assert f"tuned with {name} {getattr(HERE, name)!r}, here is" in caplog.text
    # Tuning anew replaces it.
    keep([tuned(arch=there.arch)], there)
    assert len(usable_rules(there)) == 1


def test_without_a_file_the_shipped_table_serves_in_silence(caplog):
    assert usable_rules(HERE) == ()
    assert caplog.text == ""


def written(place, change):
    keep([tuned(), tuned(bucket=1)], HERE)
    values = json.loads(place.read_text())
    change(values)
    place.write_text(json.dumps(values))


def rule(key, value):
    return lambda values: values["rules"][0].update({key: value})


def config(key, value):
    return lambda values: values["rules"][0]["config"].update({key: value})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.pop("rules"), "the file must have the keys"),
        (lambda v: v.update(version=2), "version must be 1, got 2"),
        (lambda v: v.update(version=True), "version must be 1, got True"),
        (lambda v: v.update(rules={}), "rules must be a list"),
        (lambda v: v["environment"].pop("gpu"), "environment must have the keys"),
        (lambda v: v["rules"].append(v["rules"][0]), "two rules are for the same problem"),
        (rule("more", 1), r"rules\[0\] must have the keys"),
        (rule("n", 0), r"rules\[0\].n must be an integer in"),
        (rule("k", 131073), r"rules\[0\].k must be an integer in"),
        (rule("n", 2560.0), r"rules\[0\].n must be an integer"),
        (rule("n", True), r"rules\[0\].n must be an integer"),
        # The kernel of one token would give wrong results for eight.
        (rule("most_tokens", 8), "no launch is for 1 to 8 tokens"),
        (rule("least_tokens", 1.0), "no launch is for 1.0 to 1 tokens"),
        (rule("kernel", "few"), "no configuration that tuning would try"),
        (rule("kernel", ["gemv"]), "kernel must be a name"),
        (rule("microseconds", float("nan")), "must be microseconds above 0"),
        (rule("microseconds", -1), "must be microseconds above 0"),
        (rule("microseconds", "3"), "must be microseconds above 0"),
        (config("block_k", 511), "no configuration that tuning would try"),
        (config("rows", 3), "no configuration that tuning would try"),
        (config("num_warps", 0), r"config.num_warps must be an integer in \[1, 65536\]"),
        (config("block_n", 1 << 40), "config.block_n must be an integer"),
        (config("more", 1), "config must have the keys"),
    ],
)
def test_a_file_with_a_wrong_entry_is_refused_as_a_whole(place, caplog, change, reason):
    written(place, change)
    with pytest.raises(ConfigurationError, match=reason):
        read(place, HERE)
    assert usable_rules(HERE) == ()
    assert str(place) in caplog.text


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[" * 10**5, b"\xff", b'{"version": NaN}', b" " * (1 << 20) + b"{}", b"7"]
)
def test_what_is_no_json_object_is_refused(place, raw):
    keep([tuned()], HERE)
    place.write_bytes(raw)
    with pytest.raises(ConfigurationError):
        read(place, HERE)
    assert usable_rules(HERE) == ()


def test_a_folder_in_the_place_of_the_file_is_refused(place, caplog):
    place.mkdir(parents=True, mode=0o700)
    place.parent.chmod(0o700)
    assert usable_rules(HERE) == ()
    assert "is not used" in caplog.text


reuse = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@reuse
@given(data=st.data())
def test_whatever_bytes_are_damaged_only_launches_that_tuning_would_try_are_believed(place, data):
    place.unlink(missing_ok=True)
    keep([tuned(), tuned(bucket=1)], HERE)
    raw = bytearray(place.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    place.write_bytes(raw)
    for found in usable_rules(HERE):
        # A damaged size is another problem; for each, only what tuning would try itself.
        n, k = map(int, found.shape.split("x"))
        assert found in candidates(Problem(n, k, found.least_tokens, found.most_tokens), HERE.arch)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@reuse
@given(path=st.sampled_from(["version", "environment", "rules", "rule", "config"]), data=st.data())
def test_any_value_in_any_place_is_refused_with_an_error_of_ours(place, path, data):
    keep([tuned()], HERE)
    values = json.loads(place.read_text())
    holder = {"rule": values["rules"][0], "config": values["rules"][0]["config"]}.get(path, values)
    key = path if holder is values else data.draw(st.sampled_from(sorted(holder)))
    before, holder[key] = holder[key], data.draw(json_values)
    place.write_text(json.dumps(values))
    place.chmod(0o600)
    try:
        found = read(place, HERE)
    except ConfigurationError:
        return
    assert found == [] or type(holder[key]) in (type(before), int, float)


def add(where, count, first):
    os.environ["XDG_CACHE_HOME"] = where
    for i in range(count):
        keep([tuned(n=first + i)], HERE)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_that_write_at_once_lose_nothing(place, tmp_path):
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=add, args=(str(tmp_path), 12, 100 * i)) for i in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    sizes = sorted(t.problem.n for t in read(place, HERE))
    assert sizes == [*range(100, 112), *range(200, 212)]


def test_the_policy_reads_the_file_once_and_the_tuned_row_stands_first(monkeypatch):
    one = tuned(n=7, k=256)
    keep([one], HERE)
    reads = []
    monkeypatch.setattr(store, "environment_of", lambda device: reads.append(device) or HERE)
    policy.forget_tuned()
    for n in (7, 8, 7):
        rule = policy.rule_for("ternary_linear", "sm_80", 1, n, 256, "cuda:0")
        assert (rule.config == one.config) == (n == 7)
    assert reads == ["cuda:0"]
    assert policy.rule_for("ternary_linear", "sm_80", 1, 7, 256) in RULES
    policy.forget_tuned()


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs)",
    ],
)
def test_the_driver_is_known_by_what_its_kernel_module_says(tmp_path, line):
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.3.0\n")
    assert store.driver_version(tmp_path / "version") == "550.54.14"


def test_the_driver_of_amd_is_known_by_hip(monkeypatch):
    monkeypatch.setattr("torch.version.hip", "7.0.1")
    assert store.driver_version() == "HIP 7.0.1"


def test_the_hash_changes_with_every_source_of_a_kernel(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("x")
    monkeypatch.setattr("bitnet_torch_triton.__path__", [str(tmp_path)])
    first = store.kernels_hash()
    (tmp_path / "a.py").write_text("y")
    assert store.kernels_hash() != first


def test_a_configuration_has_no_key_that_the_file_forgets():
    keep([tuned()], HERE)
    (values,) = json.loads(HERE.file.read_text())["rules"]
    assert set(values["config"]) == set(KernelConfig.__dataclass_fields__)
