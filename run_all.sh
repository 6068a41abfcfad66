#!/usr/bin/env bash
# The nightly reproduction: evaluate a model with and without visual-token reduction through lmms-eval, print a table.
# Needs python3 and pip; makes .venv itself.
#
#   ./run_all.sh                  the embedded shapes model on the CPU, no downloads of weights or data (under 10 min)
#   PROFILE=paper ./run_all.sh    Table 2 of the VTW paper: LLaVA-1.5-7B/13B and LLaVA-NeXT-7B (needs the Hub and a GPU)
#   ./run_all.sh --limit 40       the first documents of each task only; the table goes to runs/ instead of results/
set -euo pipefail
cd "$(dirname "$0")"
profile=${PROFILE:-shapes}
command="./run_all.sh${*:+ $*}"
[ "$profile" = shapes ] || command="PROFILE=$profile $command"

limit=
explicit_limit=
if [ "${1:-}" = --limit ] && [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] && [ $# -eq 2 ]; then
    limit=$2
    explicit_limit=$2
elif [ $# -gt 0 ]; then
    echo "run_all.sh: unknown arguments: $* (usage: [PROFILE=shapes|paper] ./run_all.sh [--limit N])" >&2
    exit 2
fi

# name|checkpoint|methods separated by blanks
case $profile in
shapes)
    models=(
        "shapes|shapes|baseline vtw,k=2 vtw,k=4 vtw,k=5 vtw,k=6 vtw,k=8 vtw,k=search,samples=200,start=1 random_k rand,k=6 fastv random_vision downsample \
        tome pyramiddrop dyvte fastv+dyvte fastv+vtw,vtw.k=6"
    )
    tasks=shapes device=cpu batch_size=32 dtype=float32 workers=$(nproc) limit=${limit:-480}
    export OMP_NUM_THREADS=1 # the model is tiny: one process per core beats several threads
    ;;
paper)
    models=(
        "llava-1.5-7b|llava-hf/llava-1.5-7b-hf|baseline fastv rand,k=16 random_k,low=8,high=24 vtw,k=16"
        "llava-1.5-13b|llava-hf/llava-1.5-13b-hf|baseline fastv rand,k=20 random_k,low=12,high=28 vtw,k=20"
        "llava-next-7b|llava-hf/llava-v1.6-vicuna-7b-hf|baseline fastv rand,k=16 random_k,low=8,high=24 vtw,k=16"
    )
    tasks=ai2d,scienceqa_img,mmmu_val,mmbench_en_dev_static,pope,mme
    device=cuda batch_size=8 dtype=float16 workers=1
    ;;
*)
    echo "run_all.sh: unknown PROFILE=$profile: choose shapes or paper." >&2
    exit 2
    ;;
esac

. .ci/venv.sh lmms
for model in "${models[@]}"; do
    IFS='|' read -r name checkpoint methods <<< "$model"
    [ "$checkpoint" != shapes ] || checkpoint=$(python -c 'from vtw_eval.shapes import CHECKPOINT; print(CHECKPOINT)')
    runs=runs/$name
    rm -rf "$runs"
    mkdir -p "$runs"
    # Each worker is one lmms-eval process, which reads a list of evaluations.
    number=0
    for method in $methods; do
        folder=$(printf '%02d_%s' "$number" "${method//[^a-z0-9.]/_}") # a comma would end lmms-eval's argument
        list=$runs/worker$((number % workers)).yaml
        number=$((number + 1))
        cat << YAML >> "$list"
- model: llava_vtw
  model_args: pretrained=$checkpoint,dtype=$dtype,method=$method
  tasks: $tasks
  device: $device
  batch_size: "$batch_size"
  output_path: $runs/$folder
  log_samples: true
  ${limit:+limit: $limit}
YAML
    done
    echo "$name: $number methods on $tasks, $workers at a time; logs in $runs/*.log"
    pids=()
    for list in "$runs"/*.yaml; do
        lmms_eval --config "$list" > "${list%.yaml}.log" 2>&1 &
        pids+=($!)
    done
    trap 'kill "${pids[@]}" 2> /dev/null' EXIT
    finished=0
    while [ -n "$(jobs -rp)" ]; do
        sleep 2
        before=$finished
        finished=$(find "$runs" -name '*_results.json' | wc -l)
        message="$finished of $number methods done, $SECONDS s"
        if [ -t 1 ]; then
            now=$(tail -qc 200 "$runs"/*.log | tr '\r' '\n' | grep -ao 'Answering: *[0-9]*%' | tr '\n' ' ' || true)
            printf '\r\033[K%s  %s' "$message" "$now"
        elif [ "$finished" -gt "$before" ]; then
            echo "$message"
        fi
    done
    trap - EXIT
    [ ! -t 1 ] || echo
    for pid in "${pids[@]}"; do
        if ! wait "$pid"; then
            grep -ah 'lmms_eval: error:' "$runs"/*.log >&2 || tail -n 20 "$runs"/*.log >&2
            exit 1
        fi
    done
    [ -n "$explicit_limit" ] && output=$runs/README.md || output=results/$name/README.md # no smoke runs among results
    vtw-eval report "$runs" --output "$output" --title "$name" --command "$command"
done
