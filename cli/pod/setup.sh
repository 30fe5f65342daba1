#!/usr/bin/env bash
# Packages of a rented machine: `setup.sh ROOT RUN`. The last line printed is the Python to use.
# The environment lives on the volume, so that a restart of the container keeps it.
set -euo pipefail
root=$1
has_torch="import torch; assert torch.__version__.split('+')[0] == '2.13.0'"
has_all="$has_torch; import safetensors, tokenizers, pyarrow, pydantic, yaml, huggingface_hub, jinja2"
own="$root/venv/bin/python"
for python in python3 "$own"; do
    if "$python" -c "$has_all" 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
wanted="$root/home/runs/$2/requirements.txt"
export UV_CACHE_DIR="$root/uv-cache"
if ! command -v uv >/dev/null; then python3 -m pip install --quiet uv; fi
if python3 -c "$has_torch" 2>/dev/null; then # the image's: gigabytes that need no download
    uv venv --quiet --clear --system-site-packages --python "$(command -v python3)" "$root/venv"
    grep -vE '^torch([^a-z]|$)' "$wanted" >"$wanted.rest" # uv does not see what the system has
    wanted="$wanted.rest"
else
    uv venv --quiet --clear "$root/venv"
fi
uv pip install --quiet --python "$own" -r "$wanted"
rm -rf "$UV_CACHE_DIR"
"$own" -c "$has_all"
echo "$own"
