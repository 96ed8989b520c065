#!/bin/sh
# Install a CPU build of torch for the given Python, unless it has torch already or the machine can
# use the default build: install_torch.sh PYTHON [VERSION], without a version the newest tried. On Linux the default build brings gigabytes of CUDA packages, which are of
# no use without an NVIDIA GPU.
set -eu
python=$1
torch="torch==${2:-2.13.0}+cpu"

if "$python" -c 'import torch' 2>/dev/null; then exit 0; fi
# Here pip installs the default build with the package.
if [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then exit 0; fi
# Which build of ROCm fits is for the user to say.
if [ -e /dev/kfd ]; then
    echo "AMD's GPU here stays unused: this installs a CPU build of torch. For the GPU, docs/start.md." >&2
fi

# First from the index that pip is configured for.
"$python" -m pip install --quiet "$torch" 2>/dev/null && exit 0
"$python" -m pip install --quiet "$torch" --index-url https://download.pytorch.org/whl/cpu && exit 0

echo "No CPU build of torch ($torch) could be installed. For the default build (several GB): $python -m pip install torch" >&2
exit 1
