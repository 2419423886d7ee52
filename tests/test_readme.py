# SPDX-License-Identifier: Apache-2.0
"""What the README shows, runs."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_example_runs_as_it_stands():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    example += "\nprint(metrics['loss'] > 0, model)\nseqjax.testing.check_cell(Leaky(3))\n"
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "True Serial(RNN(LSTM(20)), RNN(Leaky(hidden_dim=20)), Dense(10))"


def test_every_name_in_the_tables_exists():
    import seqjax

    text = README.read_text()
    for name in re.findall(r"^\| `(\w+)\(", text, re.M):
        assert hasattr(seqjax, name) or hasattr(seqjax.engines, name), name
    for name in re.findall(r"`cells\.(\w+)`", text):
        assert hasattr(seqjax.cells, name), name


def test_its_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / picture).is_file(), picture
