#!/usr/bin/env bash
# Look at reports with the real thing: Chromium opens the page, pdfTeX sets the tables. Debian's packages are installed if
# they are not there (as root), and Playwright in a place of its own; then pytest runs what stands beside this file.
#
#   ./tests/looks/run.sh          pictures of the page go to $LOOKS, if it is set
#
# Run it in the environment of the tests. It is no part of tests/run.sh, since it needs what only Debian's packages bring.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=()
command -v chromium > /dev/null || missing+=(chromium)
command -v pdflatex > /dev/null || missing+=(texlive-latex-base texlive-latex-recommended)
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update --quiet --quiet
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
fi
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$tools" 'playwright>=1.49,<2'
PYTHONPATH="$tools${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
    python -m pytest tests/looks/look_at_report.py "$@"
