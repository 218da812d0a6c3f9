# Joins the six nodes; where they are joined already there is nothing to do.
set -euo pipefail
nodes=()
for n in 0 1 2 3 4 5; do
  nodes+=("headwise-valkey-$n.headwise-valkey:6379")
done
state=$(bash /etc/valkey/cli.sh -h headwise-valkey-0.headwise-valkey -p 6379 cluster info)
if [[ $state == *cluster_state:ok* ]]; then
  exit 0
fi
bash /etc/valkey/cli.sh --cluster create "${nodes[@]}" --cluster-replicas 1 --cluster-yes
