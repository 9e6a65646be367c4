#!/usr/bin/env bash
# Write requirements-cpu.txt and requirements-cuda.txt anew from uv.lock: every package, pinned, with hashes. Needs uv (PyPI).
# TORCH_WHEELS: a folder or page with torch's CPU wheels; PyPI has only the CUDA build.
set -euo pipefail
cd "$(dirname "$0")"
torch_wheels=${TORCH_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}

locked() {
  uv export --locked --extra serve --group image --no-emit-project --no-hashes --no-header --no-annotate --quiet
}
compile() {
  uv pip compile - --generate-hashes --no-header --no-annotate --quiet \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

locked | compile --output-file requirements-cuda.txt
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements-cuda.txt)

locked | grep --invert-match --extended-regexp '^(nvidia-|cuda-|triton)' | sed "s|^torch==[0-9.]*|torch==$torch+cpu|" \
  | compile --output-file requirements-cpu.txt --find-links "$torch_wheels"
# one exact address rather than a second index, which could answer for every other package too
wheel=https://download.pytorch.org/whl/cpu/torch-$torch%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl
sed -i "s|^torch==$torch+cpu |torch @ $wheel |" requirements-cpu.txt
