#!/usr/bin/env bash
# All tests, on the real host. Arguments go to pytest: bash scripts/test.sh tests/test_color.py -x
source "$(dirname "$0")/env.sh"
export VGIFT_NEEDS_HOST=1 # a skipped host test is a failure
exec python -m pytest "$@"
