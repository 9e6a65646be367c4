#!/usr/bin/env bash
# Write requirements-cpu.txt and requirements-cuda.txt anew: every package, pinned, with hashes. Needs uv (PyPI).
# TORCH_WHEELS: a folder or page with torch's CPU wheels; PyPI has only the CUDA build.
set -euo pipefail
cd "$(dirname "$0")"
torch_wheels=${TORCH_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}
torch=2.13.0

compile() {
  uv pip compile ../../pyproject.toml requirements.in - --extra serve --generate-hashes --no-header --no-annotate --quiet \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

echo "torch==$torch" | compile --output-file requirements-cuda.txt

echo "torch==$torch+cpu" | compile --output-file requirements-cpu.txt --find-links "$torch_wheels"
# one exact address rather than a second index, which could answer for every other package too
wheel=https://download.pytorch.org/whl/cpu/torch-$torch%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl
sed -i "s|^torch==$torch+cpu |torch @ $wheel |" requirements-cpu.txt
