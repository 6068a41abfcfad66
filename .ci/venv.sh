# Make an environment with the given extras and put it on PATH; sourced by run_all.sh and tests/run.sh.
# Usage: . .ci/venv.sh lmms,dev        (from the top of the repository)
#
#             .venv         the versions in .ci/constraints.txt, which were tested together
#   LATEST=1  .venv-latest  the newest that setup.cfg allows, looked up once a day
#   OLDEST=1  .venv-oldest  the oldest that setup.cfg allows; of what those need in turn, the newest that fits
#
# A second run reuses the environment until setup.cfg or the lock changes.

extras=$1
lock=$PWD/.ci/constraints.txt
venv=.venv${LATEST:+-latest}${OLDEST:+-oldest}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -n "${LATEST:-}" ] && [ -n "${OLDEST:-}" ]; then
    echo "LATEST or OLDEST, not both." >&2
    exit 2
fi
if ! new_enough python3; then
    echo "vtw-eval needs Python 3.11 or newer; python3 is $(python3 --version 2>&1)." >&2
    exit 1
fi
if ! new_enough "$venv/bin/python"; then # none, or one of a Python that is too old or gone
    echo "Making $venv ..."
    rm -rf "$venv"
    # Some systems ship venv without ensurepip; virtualenv brings its own pip.
    if ! python3 -m venv "$venv" 2>/dev/null; then
        rm -rf "$venv"
        bootstrap=$(mktemp -d)
        python3 -m pip install --quiet --target "$bootstrap" virtualenv
        PYTHONPATH=$bootstrap python3 -m virtualenv --quiet "$venv"
        rm -rf "$bootstrap"
    fi
fi
PATH=$PWD/$venv/bin:$PATH
export PATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

install_locked() {
    # The first names pip itself; the second holds for what builds the packages that come as sources only.
    export PIP_CONSTRAINT=$lock PIP_BUILD_CONSTRAINT=$lock
    python -m pip install --quiet pip
    python -m pip install --quiet --editable ".[$extras]"
    unset PIP_CONSTRAINT PIP_BUILD_CONSTRAINT
}

install_latest() {
    python -m pip install --quiet --upgrade pip
    python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[$extras]"
}

install_oldest() { # pip has no such resolution
    python -m pip install --quiet --constraint "$lock" uv
    uv pip install --quiet --python "$venv/bin/python" --resolution lowest-direct --editable ".[$extras]"
}

stamp=$venv/installed-$(printf '%s' "$extras" | tr ',' '-')
wanted=$( (cat setup.cfg "$lock"; pwd; [ -z "${LATEST:-}" ] || date +%F) | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing vtw-eval[$extras] into $venv (a few minutes the first time) ..."
    if [ -n "${LATEST:-}" ]; then install_latest; elif [ -n "${OLDEST:-}" ]; then install_oldest; else install_locked; fi
    printf '%s\n' "$wanted" > "$stamp"
fi
