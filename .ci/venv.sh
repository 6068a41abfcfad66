# Make .venv beside this repository with the given extras and put it on PATH; sourced by run_all.sh and tests/run.sh.
# Usage: . .ci/venv.sh lmms,dev        (from the top of the repository)
# A second run reuses the environment until setup.cfg changes.

extras=$1
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "vtw-eval needs Python 3.10 or newer; python3 is $(python3 --version 2>&1)." >&2
    exit 1
fi
if [ ! -x .venv/bin/python ]; then
    echo "Making .venv ..."
    # Some systems ship venv without ensurepip; virtualenv brings its own pip.
    if ! python3 -m venv .venv 2>/dev/null; then
        rm -rf .venv
        bootstrap=$(mktemp -d)
        python3 -m pip install --quiet --target "$bootstrap" virtualenv
        PYTHONPATH=$bootstrap python3 -m virtualenv --quiet .venv
        rm -rf "$bootstrap"
    fi
fi
stamp=.venv/installed-$(printf '%s' "$extras" | tr ',' '-')
wanted=$( (cat setup.cfg; pwd) | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing vtw-eval[$extras] into .venv (a few minutes the first time) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    printf '%s\n' "$wanted" > "$stamp"
fi
PATH=$PWD/.venv/bin:$PATH
export PATH
