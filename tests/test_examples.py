"""The notebook in `examples/` is executed whole, in an empty folder, by this environment's own kernel."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbformat import NotebookNode

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebook is executed."""
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def executed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NotebookNode]:
    """The cells of the executed notebook by id."""
    jupyter = tmp_path_factory.mktemp("jupyter")
    write_kernel_spec(jupyter / "kernels" / "python3")  # of sys.executable
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MPLBACKEND"):
            patch.delenv(name, raising=False)
        for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(jupyter))
        patch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, where ipywidgets is not installed
        notebook = nbformat.read(QUICKSTART, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.id: cell for cell in notebook.cells}


def shown(cell: NotebookNode, kind: str) -> list[str]:
    """What a cell has put out of one MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_notebook_trains_its_study_in_the_folder_it_is_in(executed: dict[str, NotebookNode], folder: Path) -> None:
    assert (folder / "mlflow.db").is_file()
    (runs,) = shown(executed["runs"], "text/plain")
    assert runs.count("finished") == 9


@pytest.mark.slow
def test_notebook_draws_its_chart(executed: dict[str, NotebookNode]) -> None:
    assert len(shown(executed["chart"], "image/png")) == 1


@pytest.mark.slow
def test_notebook_shows_means_with_n_and_verdicts(executed: dict[str, NotebookNode]) -> None:
    for cell, variants in (("summary", ("none", "batchnorm", "layernorm")), ("compare", ("batchnorm", "layernorm"))):
        (table,) = shown(executed[cell], "text/html")
        for variant in variants:
            assert f"<td>norm={variant}</td>\n      <td>3</td>" in table
    assert any(f"<td>{verdict}</td>" in table for verdict in ("better", "worse", "equivalent", "undecided"))


@pytest.mark.slow
def test_notebook_says_nothing_on_stderr(executed: dict[str, NotebookNode]) -> None:
    outputs = [output for cell in executed.values() for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


def test_notebook_is_kept_without_outputs() -> None:
    for cell in nbformat.read(QUICKSTART, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
