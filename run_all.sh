#!/usr/bin/env bash
# The nightly reproduction: evaluate models with and without visual-token reduction, write tables with statistics.
# Needs python3 and pip; makes .venv itself, with the locked versions of all dependencies (LATEST=1: the newest that
# setup.cfg allows, in .venv-latest). An interrupted run goes on where it was.
#
#   ./run_all.sh                  all embedded models on the CPU, no downloads of weights or data (under 15 min):
#                                 results/shapes, and Tables 2, 8 and 3 of the VTW paper as boards-table2 (LLaVA),
#                                 boards-table8 (Qwen2-VL, InternVL) and moves-table3 (Video-LLaVA)
#   PROFILE=shapes ./run_all.sh   results/shapes only
#   PROFILE=boards ./run_all.sh   more methods on the embedded LLaVA for boards
#   PROFILE=paper ./run_all.sh    Tables 2 and 8 of the VTW paper (needs the Hub and a GPU)
#   PROFILE=video ./run_all.sh    Table 3, Video-LLaVA (the same; first: vtw-eval prepare-tgif)
#   ./run_all.sh --limit 40       the first documents of each task only; tables go to runs/ instead of results/
#                                 (any options of vtw-eval sweep)
#
# results/ is written when every cell is done, and not before: an interrupted or partly failed run leaves its tables in
# runs/. Exit status: that of vtw-eval sweep (1: a cell failed, 2: the plan cannot be carried out, 130: Ctrl-C).
set -euo pipefail
cd "$(dirname "$0")"
profile=${PROFILE:-embedded}
case $profile in
embedded) plans=(shapes boards-table2 boards-table8 moves-table3) ;;
shapes | boards) plans=("$profile") ;;
paper) plans=(vtw-table2 vtw-table8) ;;
video) plans=(vtw-table3) ;;
*)
    echo "run_all.sh: unknown PROFILE=$profile: choose embedded, shapes, boards, paper or video." >&2
    exit 2
    ;;
esac
command="./run_all.sh${*:+ $*}"
[ "$profile" = embedded ] || command="PROFILE=$profile $command"

. .ci/venv.sh lmms
status=0
for plan in "${plans[@]}"; do
    run=runs/$plan replaces=
    [ $# -eq 0 ] || run=runs/$plan-partial replaces=--take-over # no smoke runs among results
    results=results/$plan
    [ ! -f "$run/reported" ] || rm -rf "$run" # a finished sweep of perhaps another version of the code
    code=0
    vtw-eval sweep "$plan" -o "$run" $replaces "$@" || code=$?
    case $code in
    0) [ $# -eq 0 ] || results=$run/report ;;
    1) results=$run/report ;;
    *) exit $code ;; # nothing to report: the plan cannot be carried out, or somebody pressed Ctrl-C
    esac
    vtw-eval report "$run" -o "$results/README.md" --command "$command"
    if [ $code -eq 0 ]; then
        touch "$run/reported"
    else
        status=$code
        echo "run_all.sh: not every cell is done, so results/$plan stays as it is; see $results/README.md." >&2
    fi
done
exit $status
