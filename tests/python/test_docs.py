"""Every block of code in README.md and docs/ runs as it stands, on the host device, and every command can be given."""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from docs_pages import Block, blocks, commands, configurations
from docs_stages import STAGES
from tierpage import cli
from tierpage._run import command
from tierpage.settings import parse_request

PYTHON = list(blocks("python"))


@functools.cache
def answers(page: str, folder: Path) -> dict[str, tuple[str, str]]:
    """Each block's end and a text: all blocks of a page run in one process, in their order."""
    folder.mkdir()
    for name in ("scratch", "here"):
        (folder / name).mkdir()
    budgets = dict(harness.settings("clock", "") or {})
    del budgets["nvme_path"], budgets["device"]
    environment = harness.child_environment()
    environment["TIERPAGE_CONF"] = ",".join(f"{name}:{value}" for name, value in budgets.items())
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    if harness.DEVICE == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    worker = Path(__file__).with_name("docs_worker.py")
    done = subprocess.run(
        [sys.executable, worker, page, folder], env=environment, cwd=folder / "here", capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    found = {name: (end, text) for name, end, text in map(json.loads, done.stdout.splitlines())}
    missing = {block.name: ("failed", done.stderr) for block in PYTHON if block.page == page}
    return missing | found


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("block", PYTHON, ids=[f"{block.page}-{block.heading}" for block in PYTHON])
def test_block_runs(block: Block, place: Path) -> None:
    end, text = answers(block.page, place / block.page.replace("/", "_"))[block.name]
    if end == "skipped":
        pytest.skip(text)
    assert end == "passed", text


def test_every_stage_has_its_block() -> None:
    assert set(STAGES) <= {(block.page, block.heading) for block in PYTHON}


def words_of(line: str) -> list[str]:
    """The words after ``tierpage``, wherever a launcher or a variable stands before it."""
    words = shlex.split(line, comments=True)
    return words[words.index("tierpage") + 1 :]


@pytest.mark.parametrize(("place_of", "line"), list(commands()))
def test_command_can_be_given(place_of: str, line: str) -> None:
    words = words_of(line)
    if words[0] != "run":
        cli.build_parser().parse_args(cli._estimated(words)[0])
        return
    own, _ = command.split(words[1:])
    options, unknown = cli._declare_run(argparse.ArgumentParser(**cli._RUN)).parse_known_args(own)
    assert unknown == [], place_of
    if "name=value" not in options.set:
        command._request(options)


@pytest.mark.parametrize(("place_of", "text"), list(configurations()))
def test_configuration_can_be_given(place_of: str, text: str) -> None:
    parse_request({}, text)


def test_commands_are_found() -> None:
    found = {words_of(line)[0] for _, line in commands()}
    assert found >= {"run", "top", "estimate", "report", "doctor", "demo"}
