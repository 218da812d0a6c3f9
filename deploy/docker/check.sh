#!/usr/bin/env bash
# Runs what `make image-environment` made as a container of it would run: nobody's user where the
# interpreter lets it, nothing of the environment but what the Dockerfile sets, and nothing written
# but to the cache. Answers a question.
#   deploy/docker/check.sh IMAGE DOCKERFILE
set -euo pipefail
image=$(realpath "$1")
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
# the ENV block's NAME=value pairs, their folders moved
variables=$(sed -n '/^ENV /,/[^\\]$/p' "$2" | sed 's/^ENV //; s/\\$//' | tr -s ' \n' '\n' \
    | sed "s#/cache#$cache#; s#/opt/headwise#$image#; s#\\\$PATH#/usr/bin:/bin#")
nobody=(setpriv --reuid 65532 --regid 65532 --clear-groups)
if "${nobody[@]}" env "$image/bin/python" -c '' 2> /dev/null; then
    chown 65532:65532 "$cache"
else
    echo "as $(id -un): uid 65532 may not run $(realpath "$image/bin/python")"
    nobody=()
fi
cd /
touch "$cache/began"
# shellcheck disable=SC2086
"${nobody[@]}" env -i $variables TMPDIR="$cache" headwise demo --max-tokens 8
written=$(find "$image" -newer "$cache/began" -print -quit)
if [[ -n $written ]]; then
    echo "written to outside of /cache: $written"
    exit 1
fi
