"""`tierpage estimate` of programs that nobody edits: where their steps are found, what is refused, what is left behind."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks

import tierpage
from tierpage import cli

MODEL = """
    import sys
    import torch
    from torch import nn

    def build():
        return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(6)])

    def inputs(batch, tokens):
        return torch.zeros(2048, 1024)
"""
LOOP = """
    for number in range(12):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = model(torch.zeros(2048, 1024, device="cuda"))
        loss = out.float().mean()
        del out
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
"""
TRAINING = (
    MODEL
    + """
    model = build().to("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
"""
)
Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Writes a program and returns its name; the current folder is its own."""
    monkeypatch.chdir(tmp_path)

    def write(*parts: str, name: str = "program.py") -> str:
        (tmp_path / name).write_text("".join(map(textwrap.dedent, parts)))
        return name

    return write


def estimate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON of an estimate for an H200, with 64 MiB in it."""
    on = ("--machine", "h200", "--device-budget", "64MiB", "--compress", "off", "--json")
    assert cli.main(["estimate", *on, *words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr where no estimate is made."""
    assert cli.main(["estimate", "--machine", "h200", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("tierpage estimate: ")
    return line


def test_a_script_is_what_its_model_is(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script(MODEL, name="bits_of_model.py")
    made = ("bits_of_model:build", "--inputs", "bits_of_model:inputs", "--mode", "train")
    model = estimate(capsys, *made)
    sys.modules.pop("bits_of_model")
    program = estimate(capsys, script(TRAINING, LOOP))
    assert program["mode"] == "program"
    assert program["parameters"] == program["trained_parameters"] == model["parameters"]
    (row,), (expected,) = program["rows"], model["rows"]
    (batch,), (known, _) = program["batches"], model["batches"]
    assert batch["held_bytes"] == known["held_bytes"]
    assert row["compute_seconds"] == pytest.approx(expected["compute_seconds"], rel=0.03)
    assert row["bound_seconds"] == pytest.approx(expected["bound_seconds"], rel=0.03)
    assert row["seconds"] == pytest.approx(expected["seconds"], rel=0.1)  # of a small program
    rules = [out["training_rule"]["bytes_max"] for out in (program, model)]
    assert rules[0] == rules[1] == 20 * model["trained_parameters"]
    kinds = [[change["what"].partition(",")[0] for change in out["changes"]] for out in (program, model)]
    assert kinds[0] == [kind for kind in kinds[1] if not kind.startswith("batch")]


def test_gradients_that_are_summed_up_are_one_step(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    once = estimate(capsys, script(TRAINING, LOOP))
    twice = estimate(
        capsys, script(TRAINING, LOOP.replace("optimizer.step()", "if number % 2: optimizer.step()").replace(
            "optimizer.zero_grad", "if number % 2: optimizer.zero_grad"))
    )  # fmt: skip
    assert (
        once["rows"][0]["compute_seconds"]
        < twice["rows"][0]["compute_seconds"]
        < 2 * once["rows"][0]["compute_seconds"]
    )


def test_results_that_take_turns(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """A step's result dies when the next one has taken its name: they take turns in two places, and steps repeat in twos."""
    text = """
        import torch, tierpage
        weights = [torch.zeros(1024, 1024, device="cuda") for _ in range(16)]
        for _ in range(20):
            KEPT = torch.zeros(1024, 1024)
            for weight in weights:
                KEPT @ weight
            tierpage.step()
            DROP
        """
    turns = estimate(capsys, script(text.replace("KEPT", "x").replace("DROP", "")))
    dropped = estimate(capsys, script(text.replace("KEPT", "x").replace("DROP", "del x")))
    for name in ("seconds", "bound_seconds", "compute_seconds"):
        assert turns["rows"][0][name] == pytest.approx(dropped["rows"][0][name], rel=0.1)
    assert turns["batches"][0]["operators"] == dropped["batches"][0]["operators"]
    assert turns["batches"][0]["compute_seconds"] == pytest.approx(dropped["batches"][0]["compute_seconds"])


def test_a_program_that_only_infers_and_its_arguments(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    name = script(
        MODEL,
        """
        assert sys.argv[1:] == ["--rows", "64", "--json"], sys.argv
        model = build().half().cuda().eval()
        print("on stdout")
        with torch.inference_mode():
            for _ in range(100):
                y = model(torch.zeros(int(sys.argv[2]), 1024, dtype=torch.half, device=torch.device("cuda:0")))
                print(float(y.sum()), y.argmax().item(), bool((y > 0).any()))
        """,
    )
    out = estimate(capsys, name, "--rows", "64", "--json")
    assert out["parameter_bytes"] == 6 * (1024 * 1024 + 1024) * 2
    (batch,) = out["batches"]
    assert batch["batch"] is None
    assert batch["numbers_read"] > 0
    assert "training_rule" not in out


def test_the_program_marks_its_steps(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """Two optimizers and tierpage itself: a step has both, and nothing is switched on."""
    name = script(
        "import tierpage\n",
        TRAINING,
        """
        other = torch.optim.SGD(model[0].parameters(), lr=1e-4, fused=True)
        with tierpage.enable(device_budget="1GiB"):
            for number in range(12):
                with tierpage.paged("forward"):
                    model(torch.zeros(64, 1024, device="cuda")).mean().backward()
                other.step()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                tierpage.step()
        """,
    )
    marked = estimate(capsys, name)
    assert not tierpage.is_enabled()
    text = Path(name).read_text()
    Path(name).write_text(text.replace("other.step()\n", "pass\n"))
    assert marked["batches"][0]["operators"] == estimate(capsys, name)["batches"][0]["operators"] + 1


def test_optimizers_that_take_turns(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    """As a generator and what judges it: each ends a step, and the gradients of one live on in the step of the other."""
    out = estimate(
        capsys,
        script(
            TRAINING,
            """
            judge = build().cuda()
            other = torch.optim.AdamW(judge.parameters(), lr=1e-4, fused=True)
            for _ in range(12):
                optimizer.zero_grad()
                judge(model(torch.zeros(64, 1024, device="cuda"))).mean().backward()
                optimizer.step()
                other.zero_grad()
                judge(torch.zeros(64, 1024, device="cuda")).mean().backward()
                other.step()
            """,
        ),
    )
    (batch,) = out["batches"]
    assert out["trained_parameters"] == 12 * (1024 * 1024 + 1024)
    assert batch["held_bytes"] >= 12 * 12 << 20
    assert out["rows"][0]["up_bytes"] > 0


def test_modules_and_loaders(script: Script, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script(
        TRAINING,
        """
        from torch.utils.data import DataLoader, TensorDataset
        loader = DataLoader(TensorDataset(torch.zeros(1024, 1024)), batch_size=64, num_workers=2, shuffle=True)
        for (x,) in loader:
            model(x.cuda(non_blocking=True)).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        """,
        name="training_in_a_module.py",
    )
    out = estimate(capsys, "-m", "training_in_a_module")
    assert out["subject"] == "-m training_in_a_module"
    assert out["trained_parameters"] == 6 * (1024 * 1024 + 1024)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("print('no torch at all')", "made no step: neither tierpage.step(), nor optimizer.step(), nor a forward"),
        ("import sys\nsys.exit(3)", "ended after 0 steps with SystemExit: 3"),
        ("if", "ended after 0 steps with SyntaxError"),
        ("raise BaseException('of its own')", "ended after 0 steps with BaseException: of its own"),
        ("import torch\ntorch.zeros(4).nonzero()", "ended after 0 steps with DynamicOutputShapeException"),
        (
            "import torch\nlayer, kept = torch.nn.Identity(), []\nwith torch.no_grad():\n for _ in range(99):\n"
            "  kept.append(layer(torch.zeros(1 << 20)))",
            "made 25 steps, and no three of them in a row leave the same memory behind",
        ),
        (
            "import torch\nwith torch.no_grad():\n torch.nn.Identity()(torch.zeros(1 << 20))",
            "made 1 steps, and no three of them in a row",
        ),
    ],
)
def test_programs_that_cannot_be_estimated(
    text: str, expected: str, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, script(text))


def test_a_checkpoint_keeps_its_content(script: Script, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What has no content is not written; how the program ends once it was left says nothing about its steps."""
    kept = [
        tmp_path / name for name in ("of_torch.pt", "of_serialization.pt", "own.safetensors", "of_others.safetensors")
    ]
    for path in kept:
        path.write_text("worth having")
    saving = """
        from torch.serialization import save
        from safetensors.torch import save_file
        import tierpage
        def save_all():
            state = model.state_dict()
            torch.save(state, "of_torch.pt")
            save(state, "of_serialization.pt")
            tierpage.save(state, "own.safetensors")
            save_file(state, "of_others.safetensors")
        save_all()
    """
    ending = (
        "\ntry:\n" + textwrap.indent(textwrap.dedent(LOOP), "    ") + "\nfinally:\n    save_all()\n    sys.exit(5)\n"
    )
    out = estimate(capsys, script(TRAINING, saving, ending))
    assert out["trained_parameters"] == 6 * (1024 * 1024 + 1024)
    assert {path.read_text() for path in kept} == {"worth having"}


def test_words_that_do_not_belong_together(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    name = script(TRAINING, LOOP)
    assert "--batch is about a model, and 'program.py' is a program" in refusal(capsys, "--batch", "4", name)
    assert "cannot open 'nowhere.py': No such file" in refusal(capsys, "nowhere.py")
    assert "no module named 'nowhere_at_all' can be run" in refusal(capsys, "-m", "nowhere_at_all")
    assert "no program is named" in refusal(capsys, "-m")
    with pytest.raises(SystemExit, match="2"):  # an option cut short would take the program's name for its value
        cli.main(["estimate", "--machine", "h200", "--qui", name])
    assert "unrecognized arguments: --qui" in capsys.readouterr().err
    assert cli.main(["estimate", name, "--machine", "rtx4090"]) in (0, 2)  # 2 without a GPU
    if not torch.cuda.is_available():
        assert "What stands after 'program.py', such as '--machine', is the program's." in capsys.readouterr().err


def test_nothing_stays_behind(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> list[Any]:
        module = torch.nn.modules.module
        return [
            sys.argv, list(sys.path), sys.modules["__main__"], sys.excepthook, sys.stdout, torch.get_default_dtype(),
            torch.nn.Module._apply, torch.autocast.__init__, torch.utils.data.DataLoader.__init__, tierpage.enable,
            torch.cuda.synchronize, dict(module._global_forward_hooks), dict(module._global_forward_pre_hooks),
            dict(_global_optimizer_post_hooks), torch.overrides._get_current_function_mode(),
        ]  # fmt: skip

    before = state()
    estimate(capsys, script(TRAINING, "torch.set_default_dtype(torch.bfloat16)\nmodel.bfloat16()\n", LOOP))
    refusal(capsys, script(TRAINING, "raise ValueError('in the middle')"))
    assert state() == before
    assert torch.zeros(2).tolist() == [0.0, 0.0]
