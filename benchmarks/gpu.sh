#!/usr/bin/env bash
# All that has to be seen on a GPU, in 18 minutes at most: first that the kernels are right, then speed, then size.
#   benchmarks/gpu.sh OUT [INTERPRETER OF AN ENVIRONMENT WITH nequip-allegro]
# Needs PyTorch for CUDA, Triton 3.5 or newer and pytest. Every part is tried, whatever became of the ones before it.
set -uo pipefail
out=${1:?give a directory for the results}
peer=(--peer false)
[ $# -gt 1 ] && peer=(--peer_python "$2")
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
failed=0
part() {
  echo "== $1"
  timeout "$2" "${@:3}" 2>&1 | tee "$out/$1.log" || { failed=1; echo "== $1 failed"; }
}
part kernels 240 python -m pytest -q tests/kernels/gpu tests/training/test_recorded.py
part graphs 120 python benchmarks/gpu_graphs.py "$out/graphs.json"
part speed 420 python -m equicat bench speed --device cuda --modes '[eager,compile]' "${peer[@]}" \
  --json "$out/speed.json" --figure "$out/speed.svg"
part scaling 420 python -m equicat bench scaling --device cuda --peer false \
  --atoms '[1000,10000,100000,1000000]' --systems '[bulk]' --repeats 3 --json "$out/scaling.json"
exit $failed
