# A node. The password comes by standard input: a command line is everybody's to read.
set -euo pipefail
password=$(</auth/password)
exec valkey-server /etc/valkey/valkey.conf \
  --cluster-announce-ip "$POD_IP" --cluster-announce-hostname "$POD_NAME.headwise-valkey" \
  - < <(printf 'requirepass %s\nmasterauth %s\n' "$password" "$password")
