#!/bin/sh
# Install a CPU build of torch for the Python that is given, unless it has torch or the machine can use the ordinary build.
# On Linux the ordinary build brings gigabytes of CUDA packages, which a machine without an NVIDIA device has no use for.
set -eu
python=$1
torch='torch==2.13.0+cpu'

if "$python" -c 'import torch' 2>/dev/null; then exit 0; fi
if [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then exit 0; fi # pip takes the ordinary one with the package

"$python" -m pip install --quiet "$torch" 2>/dev/null && exit 0 # from wherever this machine's pip looks
"$python" -m pip install --quiet "$torch" --index-url https://download.pytorch.org/whl/cpu && exit 0

echo "No CPU build of torch ($torch) could be installed. For the ordinary build, several GB: $python -m pip install torch" >&2
exit 1
