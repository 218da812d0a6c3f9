#!/usr/bin/env bash
# Writes tokens for one tenant, and for decode towards prefill, into two folders with the files of the
# secrets. The tenant's own token is in FOLDER/TENANT.token: give it to the tenant and keep it nowhere else.
#   make-tokens.sh FOLDER TENANT
set -euo pipefail
folder=$1 tenant=$2
umask 077
mkdir -p "$folder/decode" "$folder/prefill"
token() { openssl rand -hex 32 | tr -d '\n'; }
entry() { printf '[[tokens]]\nsha256 = "%s"\ntenant = "%s"\n' "$(sha256sum < "$1" | cut -d ' ' -f 1)" "$2"; }
token > "$folder/$tenant.token"
token > "$folder/decode/prefill-token"
entry "$folder/$tenant.token" "$tenant" > "$folder/decode/tokens.toml"
# decode names the tenant that it acts for
entry "$folder/decode/prefill-token" '*' > "$folder/prefill/tokens.toml"
