# SPDX-License-Identifier: Apache-2.0
"""Runs one benchmark by name: `scripts/run bench NAME [--flags]`."""

import runpy
import sys

NAMES = ("affine", "engines", "gpu", "layers", "parallel")


def main() -> None:
    """The first argument names the benchmark; the rest are its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: scripts/run bench NAME [--flags]\nbenchmarks: {' '.join(NAMES)}", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[0]
    runpy.run_module(f"experiments.benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
