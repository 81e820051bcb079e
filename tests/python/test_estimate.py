"""`tierpage estimate`: what it records, what it answers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import estimate_models
from tierpage import cli, native
from tierpage._estimate import machines
from tierpage._estimate.deferral import deferred
from tierpage._estimate.machines import MACHINES, named
from tierpage._estimate.programs import OPTIMIZERS, Task, record
from tierpage._estimate.recording import flops
from tierpage._estimate.replaying import alive_whole_bytes, largest_operator
from tierpage._estimate.subjects import callable_named, subject_of
from tierpage.errors import ConfigError, OutOfMemoryError

MIB = 1 << 20
RATES = named("h200").compute(training=False)
# Ten weights of 8 MiB, read in turn; each read makes 2 MiB.
WEIGHTS = 10
PROGRAM = "\n".join(
    [
        "tierpage-program 1",
        *(f"A {i} {8 * MIB}" for i in range(WEIGHTS)),
        "S",
        "L",
        *(f"O mm 500 {i}r +{WEIGHTS}:{2 * MIB}\nF {WEIGHTS}" for i in range(WEIGHTS)),
        "S\n",
    ]
)


def replay(program: str = PROGRAM, device: int = 48 * MIB, loops: int = 4, **rates: float) -> dict[str, Any]:
    with native.translated():
        return native.engine_module().replay_program(program, device, 1 << 30, 0, rates, loops)


def estimate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of an estimate for an H200 that runs."""
    assert cli.main(["estimate", *words, "--machine", "h200", "--json"]) in (0, 1), capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What stands on stderr where no estimate is made."""
    assert cli.main(["estimate", *words, *([] if "--machine" in words else ["--machine", "h200"])]) == 2
    return capsys.readouterr().err


def tower(**task: Any) -> Any:
    given = {"mode": "infer", "batch": 2, "tokens": 64} | task
    return record(subject_of(f"estimate_models:{given.pop('model', 'Tower')}"), Task(**given), RATES)


def test_a_replay_moves_what_the_device_lacks_and_keeps_its_bound() -> None:
    out = replay()
    last = out["steps"][-1]
    assert len(out["steps"]) == 5
    assert 80 * MIB - 48 * MIB <= last["to_device_bytes"] <= 80 * MIB
    assert last["to_host_bytes"] == 0
    assert last["compute_seconds"] == pytest.approx(WEIGHTS * 500e-6)
    assert last["compute_seconds"] <= out["bound_seconds"] <= last["seconds"]
    assert replay(device=128 * MIB)["steps"][-1]["to_device_bytes"] == 0


def test_rates_are_used() -> None:
    slow, fast = replay(host_to_device=1e9)["steps"][-1], replay(host_to_device=100e9)["steps"][-1]
    assert slow["seconds"] > 2 * fast["seconds"]


@pytest.mark.parametrize("rates", [{"speed": 1.0}, {"disk_read": 0.0}, {"map_us": -1.0}, {"disk_write": float("nan")}])
def test_rates_that_cannot_be_used_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(rates))):
        replay(**rates)


def test_bad_programs_and_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        replay("tierpage-program 1\nF 7\n")
    with pytest.raises(ConfigError, match="device_budget"):
        replay(device=4096)
    with pytest.raises(ValueError, match="loops"):
        replay(loops=0)
    with pytest.raises(OutOfMemoryError):
        replay(device=4 * MIB)


def test_operators_and_what_is_alive_are_counted_in_whole_pages() -> None:
    assert largest_operator(PROGRAM) == ("mm", 10 * MIB)
    assert alive_whole_bytes(PROGRAM) == 82 * MIB
    lists = f"tierpage-program 1\nA 0 {3 * MIB}\nA 1 {MIB}\nO* fused 1 0r ; 1w\n"
    assert largest_operator(lists) == ("fused", 4 * MIB)


def test_gradients_of_two_optimizer_steps_get_numbers_of_their_own() -> None:
    text = f"tierpage-program 1\n{''.join(f'A {i} {2 * MIB}{chr(10)}' for i in range(8))}"
    text += "O* aten::_fused_adamw_ 10 0w 1w ; 2w 3w\nO* aten::_fused_adamw_ 10 4w 5w ; 6w 7w\nS\n"
    made = [line.split()[1] for line in deferred(text).splitlines() if line.startswith("A ")]
    assert len(set(made)) == 8


def test_counts_of_a_forward() -> None:
    recording = tower()
    parameters = estimate_models.LAYERS * 1024**2 + 2 * 512 * 1024
    assert (recording.parameters, recording.parameter_bytes) == (parameters, 4 * parameters)
    assert recording.held_bytes == 4 * parameters
    assert recording.alive_bytes >= recording.held_bytes
    matmul_flops = 2 * 2 * 64 * (estimate_models.LAYERS * 1024**2 + 512 * 1024)
    assert recording.compute_seconds >= matmul_flops / RATES.single_flops_per_second
    assert tower(dtype=torch.bfloat16).parameter_bytes == 2 * parameters
    assert torch.get_default_dtype() == torch.float32


# With float32 gradients of all parameters, which die within the step, and one state for each moment.
@pytest.mark.parametrize(("optimizer", "states"), [("adamw", 2), ("adam", 2), ("sgd", 0), ("momentum", 1)])
def test_states_that_training_holds(optimizer: str, states: int) -> None:
    assert optimizer in OPTIMIZERS
    recording = tower(mode="train", optimizer=optimizer)
    assert recording.held_bytes == (1 + states) * recording.parameter_bytes
    assert recording.alive_bytes >= recording.held_bytes + recording.parameter_bytes
    assert recording.autocast


def test_hooks_hold_no_gradients_and_recompute_holds_no_activations() -> None:
    plain = tower(mode="train", batch=16, tokens=512)
    hooks = tower(mode="train", batch=16, tokens=512, hooks=True)
    again = tower(mode="train", batch=16, tokens=512, recompute=True)
    assert hooks.alive_bytes < plain.alive_bytes
    assert again.alive_bytes < plain.alive_bytes
    assert again.compute_seconds > plain.compute_seconds


def test_frozen_parameters_have_no_states() -> None:
    recording = tower(model="adapted", mode="train")
    assert recording.trained_parameters == 512 * 1024
    assert recording.held_bytes == recording.parameter_bytes + 2 * 4 * 512 * 1024


def test_a_loss_that_the_model_returns_is_taken() -> None:
    returned, made = (tower(model=name, mode="train", batch=16, tokens=512).text for name in ("WithLoss", "Tower"))
    assert "aten::pow" in returned
    assert "nll_loss" not in returned
    assert "nll_loss" in made


def test_arithmetic_that_nobody_counts_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert tower().uncounted == tower(mode="train").uncounted == ()
    assert tower(model="Recurrent").uncounted
    words = ["estimate", "estimate_models:Recurrent", "--tokens", "64", "--machine", "h100", "--quick"]
    assert cli.main(words) == 0
    assert "arithmetic of aten::" in capsys.readouterr().out


def test_products_of_experts_are_counted() -> None:
    grouped = torch.ops.aten._grouped_mm.default
    rows, weights = torch.empty(64, 128, device="meta"), torch.empty(8, 128, 256, device="meta")
    assert flops(grouped, (rows, weights), {}, None) == 2 * 64 * 128 * 256


def test_copied_layers_are_recorded_part_by_part() -> None:
    recording = tower(model="Encoder", batch=16, tokens=512)
    assert recording.uncounted == ()
    matmul_flops = 2 * 16 * 512 * 2 * 6 * 1024**2
    assert recording.compute_seconds >= matmul_flops / RATES.single_flops_per_second
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["picture_inputs", "named_inputs"])
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_other_inputs_than_tokens(name: str, mode: str) -> None:
    recording = tower(model="Picture", mode=mode, inputs=callable_named(f"estimate_models:{name}"))
    assert "convolution" in recording.text
    assert recording.compute_seconds > 0


def test_rows_of_budgets_and_what_would_change(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("estimate_models:Tower", "--tokens", "64", "--device-budget", "64MiB,16MiB,2MiB")
    out = estimate(capsys, *words)
    fits, pages, small = out["rows"]
    assert fits["all_fits_device"]
    assert fits["seconds"] == pytest.approx(fits["compute_seconds"], rel=0.05)
    assert pages["up_bytes"] > 0
    assert pages["seconds"] >= pages["bound_seconds"] >= pages["compute_seconds"]
    assert not small["runs"]
    assert "out of memory" in small["refusal"]
    whats = [change["what"] for change in out["changes"]]
    assert [what for what in whats if "holds all" in what]
    assert "batch 2" in whats
    holds_all = next(change for change in out["changes"] if "holds all" in change["what"])
    assert holds_all["row"]["all_fits_device"]
    assert holds_all["seconds_per_sequence_factor"] < 1
    assert not estimate(capsys, *words, "--quick")["changes"]
    roomy = estimate(capsys, "estimate_models:Tower", "--tokens", "64", "--device-budget", "1GiB")
    assert [change["what"] for change in roomy["changes"]] == ["batch 2"]
    assert roomy["changes"][0]["seconds_per_sequence_factor"] < 1


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_the_working_set_is_the_least_that_runs(capsys: pytest.CaptureFixture[str], mode: str) -> None:
    words = ("estimate_models:Tower", "--tokens", "64", "--mode", mode, "--quick")
    batch = estimate(capsys, *words)["batches"][0]
    assert batch["largest_operator_bytes"] <= batch["working_set_bytes"] <= 4 * batch["largest_operator_bytes"]
    least = batch["working_set_bytes"]
    rows = estimate(capsys, *words, "--device-budget", f"{least},{least - 2 * MIB}")["rows"]
    assert [row["runs"] for row in rows] == [True, False]


def test_exit_codes_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "estimate_models:Tower", "--machine", "rtx4090", "--tokens", "64", "--mode", "train"]
    assert cli.main([*words, "--device-budget", "64MiB", "--batch", "1,2"]) == 0
    text = capsys.readouterr().out
    assert "16 to 20 bytes a parameter" in text
    assert "12.0 bytes a trained parameter" in text
    assert "working set" in text
    assert text.count("\nprogram ") == 2
    assert cli.main([*words, "--device-budget", "4MiB"]) == 1
    assert "does not run" in capsys.readouterr().out


def test_drives(capsys: pytest.CaptureFixture[str]) -> None:
    out = estimate(
        capsys, "estimate_models:Tower", "--tokens", "64", "--device-budget", "16MiB", "--host-budget", "8MiB",
        "--nvme-budget", "1GiB", "--drive", "1:1,4:2",
    )  # fmt: skip
    slow, fast = out["rows"]
    assert slow["drive_read_bytes"] > 0
    assert fast["seconds"] < slow["seconds"]
    assert slow["seconds"] >= slow["bound_seconds"]
    assert [change for change in out["changes"] if "drive" in change["what"]]
    without = estimate(capsys, "estimate_models:Tower", "--device-budget", "16MiB", "--host-budget", "8MiB")
    assert not without["rows"][0]["runs"]


def test_links_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("estimate_models:Tower", "--tokens", "64", "--device-budget", "16MiB", "--quick")
    assert estimate(capsys, *words, "--link", "4:2")["machine"]["down_bytes_per_second"] == 2e9
    assert estimate(capsys, *words, "--link", "4")["rows"][0]["bound_seconds"] > 0.002


def test_machines_are_plausible() -> None:
    for machine in MACHINES.values():
        assert machine.half_flops > machine.single_flops > 1e13
        assert 20e9 < machine.down_rate <= machine.up_rate < 64e9
        assert machine.device_budget() < machine.device_bytes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no/such/thing"], "neither module:factory nor a file"),
        (["estimate_models:nothing"], "no attribute 'nothing'"),
        (["no_such_module:build"], "No module named"),
        (["estimate_models:not_callable"], "is of type int"),
        (["estimate_models:not_a_module"], "returned a value of type str"),
        (["estimate_models:fails"], "needs a licence"),
        (["estimate_models:Reads"], "--inputs"),
        (["estimate_models:Hoards"], "allocate and free the same memory"),
        (["estimate_models:Picture"], "--inputs"),
        (["estimate_models:Tower", "--inputs", "estimate_models:bad_inputs"], "no such input"),
        (["estimate_models:Tower", "--inputs", "nothing"], "not module:callable"),
        (["estimate_models:frozen", "--mode", "train"], "no parameter that requires a gradient"),
        (["estimate_models:Tower", "--hooks"], "about training"),
        (["estimate_models:Tower", "--batch", "0"], "--batch has '0'"),
        (["estimate_models:Tower", "--tokens", "many"], "--tokens has 'many'"),
        (["estimate_models:Tower", "--device-budget", "8"], "less than one page"),
        (["estimate_models:Tower", "--device-budget", "400GiB"], "give less, or another --machine"),
        (["estimate_models:Tower", "--host-budget", "50%"], "fraction"),
        (["estimate_models:Tower", "--nvme-budget", "8GiB"], "--drive 3.5:2.5"),
        (["estimate_models:Tower", "--drive", "3:2"], "without --nvme-budget"),
        (["estimate_models:Tower", "--drive", "fast", "--nvme-budget", "1GiB"], "--drive has 'fast'"),
        (["estimate_models:Tower", "--link", "0"], "--link has '0'"),
        (["estimate_models:Tower", "--nvme-path", "."], "--machine this only"),
        (["estimate_models:Tower", "--machine", "abacus"], "rtx4090"),
    ],
)
def test_what_cannot_be_estimated_says_why(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refusal(capsys, *words)


def test_recompute_without_a_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("estimate_models:Picture", "--inputs", "estimate_models:picture_inputs", "--mode", "train", "--recompute")
    assert "ModuleList" in refusal(capsys, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_this_machine_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name the machine" in refusal(capsys, "estimate_models:Tower", "--machine", "this")


class Measured:
    """Stands in for a machine with a GPU: the links' figures of `tierpage doctor`, in GB/s."""

    def __init__(self, **links: float) -> None:
        self.links, self.paths = links, []

    def measure_links(self, device: str, index: int, paths: list[str]) -> dict[str, float]:
        assert (device, index) == ("cuda", 0)
        self.paths = paths
        return self.links


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured(host_to_device=20.0, device_to_host=18.0, disk_read=3.0, disk_write=2.0)
    measured.EngineError, measured.replay_program = (
        getattr(native.engine_module(), name) for name in ("EngineError", "replay_program")
    )
    monkeypatch.setattr(native, "engine_module", lambda: measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 << 30))
    monkeypatch.setattr(machines, "_matmul_rate", lambda dtype: 50e12 / dtype.itemsize)
    monkeypatch.setattr(machines, "_memory_rate", lambda: 400e9)
    return measured


def test_what_is_measured_here_is_used(gpu: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "estimate_models:Tower", "--json", "--quick", "--device-budget", "16MiB", "--tokens", "64"]
    assert cli.main([*words, "--nvme-path", str(tmp_path), "--nvme-budget", "1GiB", "--host-budget", "64MiB"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["machine"] == {
        "name": "a GPU", "device_bytes": 8 << 30, "up_bytes_per_second": 20e9, "down_bytes_per_second": 18e9,
    }  # fmt: skip
    assert out["rows"][0]["drive_read_bytes_per_second"] == 3e9
    assert gpu.paths == [str(tmp_path)]
    assert cli.main([*words, "--link", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]["up_bytes_per_second"] == 10e9
    assert gpu.paths == []


def test_links_and_drives_that_cannot_be_measured(
    gpu: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("estimate_models:Tower", "--machine", "this", "--nvme-budget", "1GiB", "--nvme-path")
    assert "no/such" in refusal(capsys, *words, str(tmp_path / "no/such"))
    del gpu.links["disk_read"]
    gpu.links["disk_error"] = "no direct I/O"
    assert "no direct I/O" in refusal(capsys, *words, str(tmp_path))
    gpu.links.clear()
    assert "links cannot be measured" in refusal(capsys, *words, str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", "estimate_models:Tower", "--tokens", "64", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["machine"]["name"] == torch.cuda.get_device_name()
    assert out["machine"]["up_bytes_per_second"] > 1e9
