"""The notebook of the tour is stored as it was executed, and runs."""

import ast
import json
import re
import tempfile
from pathlib import Path

import pytest
from test_readme import parsed

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
RECALL = re.compile(r"^toy/city/test: R@1 ([\d.]+)", re.M)
SMALLER = {
    'run("progeo demo --only_city --num_images 1000 --out toy")': 'os.mkdir("toy"); os.symlink(CITY, "toy/city")',
    "--training.epochs 3": "--training.epochs 1 --training.iterations_per_epoch 2 --training.batch_size 4 "
    "--encoder.image_size 48 --prompts.image_size 48 --prompts.epochs 2 --data.num_workers 0",
    "--folder toy/city/test/database --out toy.index": "--folder toy/city/known/queries --out toy.index",
    "calibrate toy.index --folder toy/city/test/queries": "calibrate toy.index --folder toy/city/train",
    "results/trained/predictions.csv": "results/thumbnail/predictions.csv",
}
"""What takes the place of parts of the notebook to run it in seconds.

The city is that of other tests, whose train alone has the 20 photos that a calibration needs. Only of the thumbnails it
is known that one finds its place, on any machine.
"""


def printed(cells):
    """Return what cells printed."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_cells_were_executed_in_order_without_an_error():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}


def test_outputs_are_small_and_name_no_folder_of_the_machine_that_made_them():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not re.findall(r"(?:^|[\s'\"(])/\w+/\S*", printed(CODE))


def test_cells_and_the_commands_in_them_can_be_parsed():
    trees = [ast.parse("".join(cell["source"])) for cell in CODE]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [call.args[0] for call in calls if ast.unparse(call.func) == "run"]
    commands = [argument.value for argument in given if isinstance(argument, ast.Constant)]
    assert len(commands) >= 9
    assert all(parsed(command.removeprefix("progeo ")) for command in commands)


def test_every_cell_runs_in_order_on_a_smaller_city(city, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # and back at the end, as a cell changes the folder
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = ["".join(cell["source"]) for cell in CODE]
    for option, smaller in SMALLER.items():
        assert "".join(code).count(option) == 1
        code = [source.replace(option, smaller) for source in code]
    pictures = []
    names = {"CITY": city, "display": lambda *shown: pictures.extend(shown)}
    for source in code:
        exec(compile(source, NOTEBOOK, "exec"), names)
    assert len(pictures) == 2 and all(picture.data.startswith(b"\xff\xd8") for picture in pictures)
    assert len(RECALL.findall(capsys.readouterr().out)) == 2
    assert {path.name for path in names["Path"]().iterdir()} == {
        *("toy", "runs", "results", "curves.png", "toy.index", "toy_encoder"),
    }


@pytest.mark.slow
def test_the_notebook_runs_and_finds_about_as_many_photos(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it writes everything
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}}).execute()
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (trained, thumbnail), (trained_now, thumbnail_now) = (
        [float(recall) for recall in RECALL.findall(printed(cells))] for cells in (CODE, executed)
    )
    assert thumbnail_now == thumbnail
    assert abs(trained_now - trained) <= 15  # rounding of other machines changes a training
