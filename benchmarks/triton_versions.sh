#!/usr/bin/env bash
# The kernels' tests, and what the compiler makes of the kernels, with other versions of Triton than the pinned one:
#     bash benchmarks/triton_versions.sh 3.8.0 3.9.0
# Each in a fresh environment that is removed afterwards. A bar that a newer compiler misses is shown, not hidden.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- 3.8.0 3.9.0
for version; do
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    echo "== triton $version"
    python3 -m venv "$environment"
    "$environment/bin/pip" install -q 'torch~=2.13.0' numpy pytest
    "$environment/bin/pip" install -q --no-deps "triton==$version"
    "$environment/bin/python" -m pytest tests/test_kernels.py
    "$environment/bin/python" benchmarks/kernel_static.py benchmarks/kernels_spec.py --check --jobs 2 | tail -25 || true
    rm -rf "$environment"
done
