#!/usr/bin/env bash
# Write .ci/constraints.txt, the versions that .ci/venv.sh installs unless told otherwise: one of each package, direct or
# not, for every Python and every extra (a constraint installs nothing, so one file serves them all).
#
#   .ci/lock.sh                        after a change of setup.cfg or .ci/lock.in: keeps what is locked as far as it can
#   .ci/lock.sh --upgrade              the newest of everything; the nightly job proposes it when the tests pass
#   .ci/lock.sh --upgrade-package ray  the newest of one (any options of "uv pip compile")
#
# Run ./tests/run.sh before the result is committed: a lock is a claim that these versions were tested.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$tools" uv
"$tools/bin/uv" pip compile setup.cfg .ci/lock.in --universal --fork-strategy fewest --python-version 3.11 \
    --extra all --extra dev --strip-extras --no-emit-index-url --no-annotate --quiet \
    --custom-compile-command ".ci/lock.sh (it says when; do not edit)" --output-file .ci/constraints.txt "$@"
