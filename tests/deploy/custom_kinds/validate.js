// Reads resources as a JSON list on standard input, and writes what their schemas say against them, as a JSON list
// of texts. A kind without a schema is an error.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};

const problems = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const name = `${resource.kind}/${resource.metadata.name}`;
  const models = await import(`@kubernetes-models/${PACKAGES[group]}/${group}/${version}`);
  if (!models[resource.kind]) {
    problems.push(`${name}: no such kind in ${resource.apiVersion}`);
    continue;
  }
  try {
    new models[resource.kind](resource).validate();
  } catch (error) {
    problems.push(`${name}: ${error.message}`);
  }
}
process.stdout.write(JSON.stringify(problems));
