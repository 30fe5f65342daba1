#!/usr/bin/env bash
# Packages of a rented machine: `setup.sh ROOT`. The last line printed is the Python to use.
# The environment lives on the volume, so that a restart of the container keeps it.
set -euo pipefail
root=$1
has_all='import torch, safetensors, tokenizers, pyarrow, pydantic, yaml, huggingface_hub, jinja2'
for python in python3 "$root/venv/bin/python"; do
    if "$python" -c "$has_all; assert torch.__version__.split('+')[0] == '2.13.0'" 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
wanted="$root/home/runs/$2/requirements.txt"
export UV_CACHE_DIR="$root/uv-cache"
if ! command -v uv >/dev/null; then python3 -m pip install --quiet uv; fi
uv venv --quiet --clear "$root/venv"
uv pip install --quiet --python "$root/venv/bin/python" -r "$wanted"
rm -rf "$UV_CACHE_DIR"
"$root/venv/bin/python" -c "$has_all"
echo "$root/venv/bin/python"
