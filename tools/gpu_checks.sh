#!/bin/sh
# What a card is asked beside its benchmarks: `make gpu-checks` calls this with the python to take.
# A check that fails does not stop the next one, since a card is lent for minutes. The last lines
# say how each went, and the exit status is that of the worst.
python=${1:-python3}
results=
status=0

check() {
    name=$1
    shift
    echo "== $name: $*"
    start=$(date +%s)
    "$@"
    code=$?
    if [ "$code" -eq 0 ]; then how=passed; else how="FAILED (exit status $code)"; status=1; fi
    how="$name: $how after $(($(date +%s) - start)) s"
    echo "== $how"  # also here, in case the card goes before the end
    results="$results$how
"
}

tests() {
    name=$1
    shift
    check "$name" "$python" -m pytest -m gpu -W default -p no:cacheprovider "$@"
}

tests "FlexAttention's backward" tests/models/test_flex_attention.py --tb=short
check "the longest response" "$python" -m benchmarks --suite gpu-longest
tests "peaks of training" tests/footprint --tb=short
tests "kernels" tests/kernels
printf '\n%s' "$results"
exit $status
