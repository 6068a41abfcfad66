#!/usr/bin/env bash
# Look at reports and at the chat page with the real thing: Chromium opens them, pdfTeX sets the tables. Debian's packages
# are installed if they are not there (as root), Playwright and Gradio in a place of their own beside the environment of
# the tests, whose packages stay as they are; then pytest runs what stands beside this file.
#
#   ./tests/looks/run.sh                                     pictures of the pages go to $LOOKS, if it is set
#   ./tests/looks/run.sh tests/looks/look_at_chat.py         some of it; any arguments of pytest
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
python -m venv "$tools"
# What is not newer there comes from the environment of the tests.
python - "$tools" << 'EOF'
import configparser, pathlib, sys, sysconfig

tools = pathlib.Path(sys.argv[1])
[inner] = tools.glob("lib/python*/site-packages")
outer = sysconfig.get_paths()["purelib"]
(inner / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")
config = configparser.ConfigParser()
config.read("setup.cfg")
(tools / "web.txt").write_text(config["options.extras_require"]["web"] + "\nplaywright>=1.49,<2\n")
EOF
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore -r "$tools/web.txt"
[ $# -gt 0 ] || set -- tests/looks/look_at_report.py tests/looks/look_at_chat.py
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$tools/bin/python" -m pytest "$@"
