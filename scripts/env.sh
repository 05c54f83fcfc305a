# Sourced by demo.sh, stic.sh and test.sh: makes an environment with this checkout, editable, and activates it.
# $VGIFT_PINS is
#   unset         .venv             LLaVA with the versions of constraints.txt
#   4.36.2        .venv-4.36.2      the same, but for the lines marked so there
#   qwen          .venv-qwen        Qwen-VL's fine-tuning code instead of LLaVA, with the lines marked so
#   python3.10    .venv-python3.10  that Python without torch and LLaVA; or python3.11, python3.12
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins="${VGIFT_PINS:-}"
venv=".venv${pins:+-$pins}"
case "$pins" in
    "" | 4.36.2 | qwen)
        pythons=("${PYTHON:-}" python3.11 python3.12 python3.10 python3)
        missing="Python 3.10, 3.11 or 3.12 is needed and was not found; name one: PYTHON=/path/to/python3.11 bash $0"
        ;;
    python3.1[0-2])
        pythons=("$pins" "${PYENV_ROOT:-$HOME/.pyenv}/versions/${pins#python}".*/bin/python)
        missing="not run: no $pins found, neither on PATH nor in pyenv"
        ;;
    *) echo "VGIFT_PINS is 4.36.2, qwen, python3.10, python3.11 or python3.12, not '$pins'" >&2 && exit 2 ;;
esac
# Of two lines for one package the first counts: the marked ones, where the mark is asked for, come first.
constraints="$(sed "s/^#$pins: //" scripts/constraints.txt | grep -v '^#' | awk -F== '!seen[$1]++')"

stamp="$(echo "$constraints" | cat scripts/env.sh pyproject.toml - | sha256sum | cut -c1-16)"
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    python=""
    for candidate in "${pythons[@]}"; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python="$("$candidate" -c 'import sys; print(sys._base_executable)')" # not that of a .venv about to go
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "$missing" >&2
        exit 1
    fi
    echo "installing vgift-plugin and what its tests need into $venv ($("$python" --version)); this takes a few minutes"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "$constraints" >"$venv/constraints.txt"
    # LLaVA's metadata asks for torch 2.0.1, which the versions here are not: pip need not say so in a newcomer's first minute.
    pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts --constraint "$venv/constraints.txt")
    if [[ "$pins" != python* ]]; then
        "${pip[@]}" torch numpy
        "${pip[@]}" transformers tokenizers accelerate peft sentencepiece protobuf einops requests
        if [ "$pins" = qwen ]; then
            "${pip[@]}" torchvision qwen-vl-utils trl ujson bitsandbytes
        else
            "${pip[@]}" --no-deps llava-torch # its own pins are for torch 2.0.1
        fi
        "${pip[@]}" deepspeed
    fi
    "${pip[@]}" --editable '.[dev]'
    if [ "$pins" = qwen ]; then "${pip[@]}" --no-deps dashscope; fi # for one file, the vocabulary of Qwen2
    echo "$stamp" >"$venv/stamp"
fi
source "$venv/bin/activate"
