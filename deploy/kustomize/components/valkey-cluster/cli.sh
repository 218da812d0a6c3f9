# valkey-cli as the nodes let it in; with -e an error is its exit status too.
set -euo pipefail
REDISCLI_AUTH=$(</auth/password)
export REDISCLI_AUTH
exec valkey-cli -e --tls --cacert /tls/ca.crt --cert /tls/tls.crt --key /tls/tls.key "$@"
