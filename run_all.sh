#!/usr/bin/env bash
# The nightly reproduction: evaluate a model with and without visual-token reduction through lmms-eval, print a table.
# Needs python3 and pip; makes .venv itself.
#
#   ./run_all.sh                  the embedded shapes model on the CPU, no downloads of weights or data (under 10 min)
#   PROFILE=paper ./run_all.sh    Table 2 of the VTW paper: LLaVA-1.5-7B/13B and LLaVA-NeXT-7B (needs the Hub and a GPU)
#   ./run_all.sh --limit 40       a smoke run on the first documents of each task
set -euo pipefail
cd "$(dirname "$0")"
profile=${PROFILE:-shapes}
command="./run_all.sh${*:+ $*}"
[ "$profile" = shapes ] || command="PROFILE=$profile $command"

limit=
if [ "${1:-}" = --limit ] && [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] && [ $# -eq 2 ]; then
    limit=$2
elif [ $# -gt 0 ]; then
    echo "run_all.sh: unknown arguments: $* (usage: [PROFILE=shapes|paper] ./run_all.sh [--limit N])" >&2
    exit 2
fi

# name|checkpoint|methods separated by blanks
case $profile in
shapes)
    models=("shapes|shapes|baseline vtw,k=2 vtw,k=4 vtw,k=5 vtw,k=6 vtw,k=8 random_k")
    tasks=shapes device=cpu batch_size=32 dtype=float32
    ;;
paper)
    models=(
        "llava-1.5-7b|llava-hf/llava-1.5-7b-hf|baseline vtw,k=16 random_k,low=8,high=24"
        "llava-1.5-13b|llava-hf/llava-1.5-13b-hf|baseline vtw,k=20 random_k,low=12,high=28"
        "llava-next-7b|llava-hf/llava-v1.6-vicuna-7b-hf|baseline vtw,k=16 random_k,low=8,high=24"
    )
    tasks=ai2d,scienceqa_img,mmmu_val,mmbench_en_dev_static,pope,mme device=cuda batch_size=8 dtype=float16
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
    # One lmms-eval process for all methods of a model; it reads its arguments from a list.
    for method in $methods; do
        cat << YAML
- model: llava_vtw
  model_args: pretrained=$checkpoint,dtype=$dtype,method=$method
  tasks: $tasks
  device: $device
  batch_size: "$batch_size"
  output_path: $runs/$method
  log_samples: true
  ${limit:+limit: $limit}
YAML
    done > "$runs/evaluations.yaml"
    lmms_eval --config "$runs/evaluations.yaml" --verbosity WARNING
    vtw-eval report "$runs" --output "results/$name/README.md" --title "$name" --command "$command"
done
