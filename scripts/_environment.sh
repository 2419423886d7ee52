# SPDX-License-Identifier: Apache-2.0
# Sourced by run and test: goes to the project's root and makes .venv hold the extras that are named.
# usage: source scripts/_environment.sh EXTRA[,EXTRA]
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment() {
    local extras="$1" python="${PYTHON:-python3}" stamp
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "seqjax needs Python >= 3.11; $("$python" --version 2>&1) was found. Set PYTHON to a newer one." >&2
        exit 2
    fi
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # installed once for each state of pyproject.toml and set of extras
    stamp=".venv/installed-$extras-$(cksum <pyproject.toml | tr ' ' -)"
    if [ ! -e "$stamp" ]; then
        echo "installing seqjax[$extras] into .venv ..." >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
        touch "$stamp"
    fi
}
