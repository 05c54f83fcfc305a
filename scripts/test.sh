#!/usr/bin/env bash
# All tests, on the real hosts, two files at a time: Qwen-VL's codes in an environment of their own, then LLaVA's.
# Arguments go to pytest, in the first environment alone: bash scripts/test.sh tests/test_color.py -n 0
# With --matrix before them: in all environments of env.sh, one after the other, which ends with a line for each. One of
# them alone: VGIFT_PINS=4.36.2 bash scripts/test.sh
if [ "${1:-}" = --matrix ]; then
    shift
    log="$(mktemp)" summary="" failed=0
    trap 'rm -f "$log"' EXIT
    for pins in "" 4.36.2 qwen python3.10 python3.12; do
        VGIFT_ONE=1 VGIFT_PINS="$pins" bash "$0" "$@" 2>&1 | tee "$log"
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

if [[ $# = 0 && -z "${VGIFT_PINS:-}${VGIFT_ONE:-}" ]]; then
    status=0
    echo "== Qwen-VL's codes; what trains is skipped where VGIFT_QWEN or VGIFT_QWEN_SERIES names no checkout:" \
        "${VGIFT_QWEN:+VGIFT_QWEN is set }${VGIFT_QWEN_SERIES:+VGIFT_QWEN_SERIES is set}"
    if VGIFT_PINS=qwen bash -c "source '$(dirname "$0")/env.sh'"; then
        VGIFT_PINS=qwen bash "$0" || status=$?
    else
        echo "== not run: Qwen-VL's codes, whose environment could not be made (see above)"
    fi
    VGIFT_ONE=1 bash "$0" || status=$? # last, so that its summary is what one sees
    exit "$status"
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
if [ "$pins" = qwen ] && [ $# = 0 ]; then set -- tests/test_qwen_host.py tests/test_qwen.py tests/test_rl.py; fi
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
