"""The notebooks of docs/notebooks run from the first cell to the last, and are kept without outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import harness

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_no_outputs(path: Path) -> None:
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def execute(path: Path, folder: Path) -> Any:
    """The notebook with its outputs, from a kernel of its own."""
    import nbclient
    import nbformat

    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    environment = harness.child_environment() | {"IPYTHONDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    if harness.DEVICE == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return notebook


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[Any]]]:
    """Both at a time: most of their time is imports."""
    for library in ("nbclient", "ipykernel", "transformers", "accelerate"):
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("notebooks")
    with ThreadPoolExecutor(1 if harness.DEVICE == "cuda" else 2) as pool:
        yield {path: pool.submit(execute, path, folder / path.stem) for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, executed: dict[Path, Future[Any]]) -> None:
    shown = [output for cell in executed[path].result().cells for output in cell.get("outputs", ())]
    assert any("text/html" in output.get("data", ()) for output in shown)
    assert not any("TierpageWarning" in output.get("text", "") for output in shown)
