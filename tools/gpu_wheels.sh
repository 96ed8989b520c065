#!/bin/sh
# Fetch what `make gpu`, gpu-steps and gpu-checks compare with, as wheels for a machine with a card
# and without a network:
#
#     tools/gpu_wheels.sh FOLDER [PYTHON [GROUP ...]]     # e.g. tools/gpu_wheels.sh wheels 3.12
#
# PYTHON is the card's version, 3.12 if none is given; torch and triton have to be there already, and
# transformers for whole steps. GROUP is one of small, quack, tests, steps and demo; without any, all.
# There, as its last lines say:
#
#     python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl
#     PYTHONPATH=SITE:SITE/nvidia_cutlass_dsl/dsl_packages make gpu
#
# Versions are those whose sources benchmarks/peers.py was written for. Only TRL's, verl's and CCE's
# own files are imported, so that their dependencies are not fetched. flash-attn has no wheels: its
# contestant stays absent unless the card's Python has it.
set -eu
[ $# -ge 1 ] || { sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1; shift
python=3.12
[ $# -eq 0 ] || { python=$1; shift; }
[ $# -gt 0 ] || set -- small quack tests steps demo

# Names and versions of a group, one a line.
wheels() {
    case $1 in
    small)  # 4 MB
        echo liger-kernel==0.8.5 trl==1.16.0 cut-cross-entropy==25.1.1 verl==0.9.1 ;;
    quack)  # 110 MB: QuACK, and the CUTLASS that it and Liger's fast kernel for sm_90 need
        echo quack-kernels==0.6.5 apache-tvm-ffi==0.1.15.post2 torch-c-dlpack-ext==0.1.5
        echo nvidia-cutlass-dsl==4.8.1 nvidia-cutlass-dsl-libs-base==4.8.1
        echo nvidia-cutlass-dsl-libs-core==4.8.1 nvidia-cutlass-dsl-libs-cu13==4.8.1
        echo cuda-bindings==13.4.4 cuda-pathfinder==1.8.3 einops==0.8.2 ;;
    tests)  # 2 MB: to run the kernels' tests
        echo pytest==9.2.0 pluggy==1.7.0 iniconfig==2.3.1 pygments==2.21.0 ;;
    steps)  # what whole steps need where the card has no transformers, or one older than 5.23
        # huggingface-hub 2 would need httpx2 beside them.
        echo transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 huggingface-hub==1.33.0
        echo accelerate==1.15.0 ;;
    demo)   # 1 MB: what `python3 -m pad_fast demo` needs beside those of steps and pyarrow
        echo datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 tenacity==9.2.1 ;;
    *)
        echo "gpu_wheels.sh: no group $1; there are small, quack, tests, steps and demo" >&2; exit 2 ;;
    esac
}

# pip takes a wheel of exactly these platforms, all of which glibc 2.35 runs.
platforms=
for glibc in 35 34 31 28 27 24 17; do platforms="$platforms --platform manylinux_2_${glibc}_x86_64"; done
platforms="$platforms --platform manylinux2014_x86_64"

mkdir -p "$folder"
for group in "$@"; do
    names=$(wheels "$group") || exit 2
    for wheel in $names; do
        # shellcheck disable=SC2086 # the platforms are words
        python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
            --implementation cp $platforms --dest "$folder" "$wheel" ||
            { echo "gpu_wheels.sh: no wheel of $wheel for Python $python" >&2; exit 1; }
    done
done
du -sh "$folder"
cat <<END
There (SITE/nvidia_cutlass_dsl/dsl_packages stands in a .pth file, which pip's --target leaves unread):
    python3 -m pip install --no-index --no-deps --target SITE $folder/*.whl
    PYTHONPATH=SITE:SITE/nvidia_cutlass_dsl/dsl_packages make gpu
END
