#!/usr/bin/env bash
# All that has to be seen on a GPU: first that the kernels are right, then what each part gains, then speed and size.
#   benchmarks/gpu.sh OUT [PART ...]      parts: tests graphs lists products md speed scaling; all of them: 18 minutes at most, by the limits below
# Needs PyTorch for CUDA, Triton 3.5 or newer, and pytest with xdist. Every part is tried, whatever became of the others.
# PEER_PYTHON may name an interpreter that has nequip-allegro, for the part speed.
set -uo pipefail
out=${1:?give a directory for the results}
shift
parts=${*:-tests graphs lists products speed scaling}
peer=(--peer false)
[ -n "${PEER_PYTHON:-}" ] && peer=(--peer_python "$PEER_PYTHON")
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
failed=0
part() {
  case " $parts " in *" $1 "*) ;; *) return ;; esac
  echo "== $1"
  local started=$SECONDS
  timeout "$2" "${@:3}" 2>&1 | tee "$out/$1.log" || { failed=1; echo "== $1 failed"; }
  echo "== $1: $((SECONDS - started)) s"
}
part tests 180 python3 -m pytest -q -n 6 tests/kernels/gpu tests/kernels/test_products.py \
  tests/networks/test_allegro_gpu.py tests/training/test_recorded.py tests/data/test_device_neighbors.py
part graphs 150 python3 benchmarks/gpu_graphs.py --json "$out/graphs.json"
part lists 90 python3 benchmarks/gpu_lists.py --json "$out/lists.json"
part products 150 python3 benchmarks/gpu_products.py --json "$out/products.json"
part md 60 python3 -m equicat bench md --device cuda --json "$out/md.json"
part speed 300 python3 -m equicat bench speed --device cuda --modes '[eager,compile]' "${peer[@]}" --json "$out/speed.json"
part scaling 150 python3 -m equicat bench scaling --device cuda --peer false \
  --atoms '[1000,10000,100000,1000000]' --systems '[bulk]' --repeats 3 --json "$out/scaling.json"
exit $failed
