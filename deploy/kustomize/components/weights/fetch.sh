# Fetches a model once into /models/current. Where it is complete there is nothing to do; what an
# earlier try has fetched is gone on with. The token is read from the file that HF_TOKEN_PATH names.
set -euo pipefail
if [[ -e $MODELS/current/.complete ]]; then
  exit 0
fi
hf download "$MODEL" --revision "$REVISION" --local-dir "$MODELS/current"
touch "$MODELS/current/.complete"
