# Sourced by demo.sh and test.sh: makes .venv with LLaVA as pinned in constraints.txt, and this checkout, editable.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp="$(cat scripts/env.sh scripts/constraints.txt pyproject.toml | sha256sum | cut -c1-16)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    python=""
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.10 python3; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python="$("$candidate" -c 'import sys; print(sys._base_executable)')" # not that of a .venv about to go
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "Python 3.10, 3.11 or 3.12 is needed and was not found; name one: PYTHON=/path/to/python3.11 bash $0" >&2
        exit 1
    fi
    echo "installing LLaVA, its dependencies and vgift-plugin into .venv ($("$python" --version)); this takes a few minutes"
    rm -rf .venv
    "$python" -m venv .venv
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt)
    "${pip[@]}" torch numpy
    "${pip[@]}" transformers tokenizers accelerate peft sentencepiece protobuf einops requests
    "${pip[@]}" --no-deps llava-torch # its own pins are for torch 2.0.1
    "${pip[@]}" deepspeed
    "${pip[@]}" --editable '.[dev]'
    echo "$stamp" >.venv/stamp
fi
source .venv/bin/activate
