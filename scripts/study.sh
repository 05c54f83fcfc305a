#!/usr/bin/env bash
# Runs a study: arms × seeds, then one table of paired differences. It goes on after a kill.
#   bash scripts/study.sh scripts/study/tiny.yaml [-o FOLDER] [--shard 0/2] [--quick]
source "$(dirname "$0")/env.sh"
exec python scripts/study "$@"
