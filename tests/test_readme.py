# SPDX-License-Identifier: Apache-2.0
"""What the README shows, runs."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"


def run_examples(*lines, devices=1):
    """What the examples, one after the other, and then `lines` print."""
    code = "\n".join([*re.findall(r"```python\n(.*?)```", README.read_text(), re.S), *lines])
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_examples_run_as_they_stand():
    printed = run_examples("print(metrics['loss'] > 0, model)", "seqjax.testing.check_cell(Leaky(3))")
    assert printed == "True Serial(RNN(LSTM(20)), RNN(Leaky(hidden_dim=20)), Dense(10))"


def test_the_example_for_several_devices_splits_the_batch_and_gives_the_numbers_of_one():
    split = "print(len(batch.xs.sharding.device_set), batch.xs.addressable_shards[0].data.shape)"
    whole = "print(all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state)))"
    steps = """
several = jax.device_get(train_step(state, batch, jax.random.key(1))[1])
_, one = train_step(*jax.device_put((state, batch), jax.devices()[0]), jax.random.key(1))
print(all(jnp.allclose(several[name], one[name], rtol=1e-5, atol=0) for name in ("loss", "grad_norm")))
"""
    assert run_examples(split, whole, steps, devices=4).splitlines() == ["4 (50, 8, 1)", "True", "True"]


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
