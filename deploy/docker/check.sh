#!/usr/bin/env bash
# Runs what `make image-environment` made as a container of it would run: nobody's user, nothing of
# the environment but what the Dockerfile sets, nothing writable but a cache. Answers a question.
#   deploy/docker/check.sh IMAGE DOCKERFILE
set -euo pipefail
image=$(realpath "$1")
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
# the ENV block's NAME=value pairs, their folders moved
variables=$(sed -n '/^ENV /,/[^\\]$/p' "$2" | sed 's/^ENV //; s/\\$//' | tr -s ' \n' '\n' \
    | sed "s#/cache#$cache#; s#/opt/headwise#$image#; s#\\\$PATH#/usr/bin:/bin#")
as_nobody=()
if [[ $(id -u) == 0 ]]; then
    chown 65532:65532 "$cache"
    as_nobody=(setpriv --reuid 65532 --regid 65532 --clear-groups)
fi
cd /
# shellcheck disable=SC2086
"${as_nobody[@]}" env -i $variables TMPDIR="$cache" headwise demo --max-tokens 8
