#!/usr/bin/env bash
# Runs all tests on the real host, two files at a time. Arguments go to pytest:
#   bash scripts/test.sh tests/test_color.py -n 0
# With --matrix first, runs them in several environments of env.sh in turn and ends with a line for each. To use one
# other environment: VGIFT_PINS=4.36.2 bash scripts/test.sh
if [ "${1:-}" = --matrix ]; then
    shift
    log="$(mktemp)" summary="" failed=0
    trap 'rm -f "$log"' EXIT
    for pins in "" 4.36.2 python3.10 python3.12; do
        VGIFT_PINS="$pins" bash "$0" "$@" 2>&1 | tee "$log"
        status="${PIPESTATUS[0]}"
        last="$(grep -E ' in [0-9.]+s' "$log" | tail -n 1)" # pytest's summary, or else why it did not start
        last="${last:-$(tail -n 1 "$log")}"
        if [ "$status" = 0 ]; then
            verdict=passed
        elif [[ "$pins" == python* && ("$status" = 5 || "$last" == "not run: "*) ]]; then
            verdict=- # all requested tests need torch, or there is no such Python
        else
            verdict=FAILED failed=1
        fi
        versions="$(sed -n 's/^== tested with //p' "$log")"
        summary+="$(printf '%-6s  %s: %s' "$verdict" "${versions:-${pins:-.venv}}" "$last")"$'\n'
    done
    printf '\n%s' "$summary"
    exit "$failed"
fi

source "$(dirname "$0")/env.sh"
# With a host installed, a skipped host test is a failure.
if [[ "$pins" != python* && "$pins" != qwen ]]; then export VGIFT_NEEDS_HOST=1; fi
python - <<'END'
import platform
from importlib.metadata import distributions

SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "numpy", "pillow")
found = {found.name: found.version for found in distributions()}
print("== tested with Python", ", ".join([platform.python_version(), *(f"{k} {found[k]}" for k in SHOWN if k in found)]))
END
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
