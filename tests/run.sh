#!/usr/bin/env bash
# Run all checks: ruff, import contracts, mypy, pytest. Needs python3 and pip; makes .venv itself. Arguments go to pytest.
#
#   ./tests/run.sh             with the locked versions of all dependencies
#   LATEST=1 ./tests/run.sh    with the newest that setup.cfg allows
#   OLDEST=1 ./tests/run.sh    with the oldest; pytest only, because older checkers have other rules for the same code
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/venv.sh lmms,vlmeval,ray,dev
if [ -z "${OLDEST:-}" ]; then
    ruff check .
    ruff format --check .
    lint-imports
    mypy
fi
# One thread per worker: the models are tiny and the workers share the cores.
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m pytest --numprocesses 2 "$@"
