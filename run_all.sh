#!/usr/bin/env bash
# The nightly reproduction: evaluate models with and without visual-token reduction, write tables with statistics.
# Needs python3 and pip; makes .venv itself, with the locked versions of all dependencies (LATEST=1: the newest that
# setup.cfg allows, in .venv-latest). An interrupted run goes on where it was.
#
#   ./run_all.sh                  the embedded shapes model on the CPU, no downloads of weights or data (under 10 min)
#   PROFILE=paper ./run_all.sh    Tables 2 and 8 of the VTW paper (needs the Hub and a GPU)
#   PROFILE=video ./run_all.sh    Table 3, Video-LLaVA (the same; first: vtw-eval prepare-tgif)
#   ./run_all.sh --limit 40       the first documents of each task only; tables go to runs/ instead of results/
#                                 (any options of vtw-eval sweep)
set -euo pipefail
cd "$(dirname "$0")"
profile=${PROFILE:-shapes}
case $profile in
shapes) plans=(shapes) ;;
paper) plans=(vtw-table2 vtw-table8) ;;
video) plans=(vtw-table3) ;;
*)
    echo "run_all.sh: unknown PROFILE=$profile: choose shapes, paper or video." >&2
    exit 2
    ;;
esac
command="./run_all.sh${*:+ $*}"
[ "$profile" = shapes ] || command="PROFILE=$profile $command"

. .ci/venv.sh lmms
status=0
for plan in "${plans[@]}"; do
    results=results/$plan
    [ $# -eq 0 ] || results=runs/$plan/report # no smoke runs among results
    [ ! -f "runs/$plan/reported" ] || rm -rf "runs/$plan" # a finished sweep of perhaps another version of the code
    vtw-eval sweep "$plan" -o "runs/$plan" "$@" || status=$?
    vtw-eval report "runs/$plan" -o "$results/README.md" --command "$command"
    [ "$status" -ne 0 ] || touch "runs/$plan/reported"
done
exit $status
