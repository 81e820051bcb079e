"""A training program that saves and ends when it gets SIGTERM, and goes on where it was; see test_preemption.py.

One process imports torch and forks each run, which switches tierpage on by itself: importing takes longer than a run.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import harness
import tierpage

FILE = Path(__file__)
STEPS = 8
STOPPED = 143  # the exit code of a run that was told to end and has saved
WIDTH = 192 if harness.DEVICE == "cpu" else 2048


def random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if harness.DEVICE == "cuda" else [])]


def set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if harness.DEVICE == "cuda":
        torch.cuda.set_rng_state(states[1])


class Training:
    """`how` is "plain" (without tierpage), "flag" (the handler sets a flag) or "at once" (it saves where it can)."""

    def __init__(self, state: str, how: str, stop_step: int, stop_where: str) -> None:
        self.state, self.how, self.stop_step, self.stop_where = state, how, stop_step, stop_where
        harness.seed_everything()
        # Dropout and the batches come from torch's generators, so that a resumed run needs the states that they had.
        blocks = [
            torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Dropout(0.1)) for _ in range(6)
        ]
        self.model = torch.nn.Sequential(*blocks).to(harness.DEVICE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.step = self.first = 0
        if os.path.exists(f"{state}.optimizer"):
            self.resume()
        self.stop = False
        self.unchanged = True  # the parameters are still those of the beginning of the step
        self.at_start = random_state()
        self.model[2].register_forward_hook(lambda *_: self.reach("forward"))
        self.model[3].register_full_backward_hook(lambda *_: self.reach("backward"))
        self.optimizer.register_step_post_hook(lambda *_: self.reach("optimizer"))
        signal.signal(signal.SIGTERM, self.asked_to_end)

    def resume(self) -> None:
        if self.how == "plain":
            from safetensors.torch import load_file

            self.model.load_state_dict(load_file(f"{self.state}.safetensors"))
        else:
            tierpage.load(self.model, f"{self.state}.safetensors")
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)  # loading makes new parameters
        rest = torch.load(f"{self.state}.optimizer", map_location="cpu")
        self.optimizer.load_state_dict(rest["optimizer"])
        set_random_state(rest["random"])
        self.step = self.first = rest["step"]

    def save(self, step: int, states: list[torch.Tensor]) -> None:
        """`step` is the one that has to be done next, `states` are those of the generators at its beginning."""
        tierpage.save(self.model, f"{self.state}.safetensors")
        rest = {"optimizer": self.optimizer.state_dict(), "step": step, "random": states}
        torch.save(rest, f"{self.state}.optimizer")

    def asked_to_end(self, number: int, frame: object) -> None:
        self.stop = True
        if self.how == "at once" and self.unchanged:
            self.save(self.step, self.at_start)
            print("saved in the middle of", self.step, flush=True)
            sys.exit(STOPPED)

    def reach(self, where: str) -> None:
        if self.step != self.stop_step:
            return
        if where == self.stop_where:
            signal.raise_signal(signal.SIGTERM)
        elif (where, self.stop_where) == ("forward", "outside"):
            print("middle", flush=True)  # whoever reads it sends the signal

    def run(self) -> None:
        for step in range(self.first, STEPS):
            self.step = step
            self.at_start, self.unchanged = random_state(), True
            x = torch.randn(16, WIDTH).to(harness.DEVICE)
            F.mse_loss(self.model(x), x).backward()
            self.unchanged = False
            self.optimizer.step()
            self.optimizer.zero_grad()
            while self.stop_where == "outside" and step == STEPS - 1 and not self.stop:
                time.sleep(0.001)  # on a busy machine the signal may come late
            if self.stop:
                self.save(step + 1, random_state())
                sys.exit(STOPPED)

    def result(self) -> dict[str, Any]:
        values: dict[str, Any] = dict(self.model.named_parameters())
        for index, kept in self.optimizer.state_dict()["state"].items():
            values |= {f"{index}.{name}": value for name, value in kept.items()}
        written = tierpage.memory_stats().get("nvme_write_bytes.total", 0)
        values = {name: value.detach().cpu().clone() for name, value in values.items()}
        return {"values": values, "first": self.first, "written": written}


def main(spill: str, state: str, how: str, stop_step: int, stop_where: str) -> None:
    if how != "plain":
        tierpage.enable(**harness.settings("clock", spill))
    training = Training(state, how, stop_step, stop_where)
    training.run()
    torch.save(training.result(), f"{state}.result")


def forked(words: list[Any]) -> None:
    code = 1
    try:
        faulthandler.dump_traceback_later(200, exit=True)
        main(*words)
        code = 0
    except SystemExit as end:
        code = int(str(end.code))
    except BaseException:
        traceback.print_exc()
    # What a session does when the interpreter ends, and no end of the objects that belong to the parent.
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    harness.make_deterministic()
    torch.optim.AdamW([torch.zeros(1)])  # imports what the first optimizer needs, which takes a second
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            forked(json.loads(line))
        print("started", child, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
