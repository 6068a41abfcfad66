#!/usr/bin/env bash
# Run all checks: ruff, mypy, pytest. Needs python3 and pip; makes .venv itself. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/venv.sh lmms,vlmeval,ray,dev
ruff check .
ruff format --check .
mypy
# One thread per worker: the models are tiny and the workers share the cores.
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python -m pytest --numprocesses 2 "$@"
