// Reads objects of the Prometheus operator as JSON, an array on stdin, and judges each by the operator's own types, as
// @kubernetes-models/prometheus-operator carries them. Prints what is wrong, a line each; exit code 1 where anything is.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const types = process.argv[2] + "/monitoring.coreos.com/v1/";
const models = await import(pathToFileURL(types + "index.js"));
// The validators let fields pass that no type has, where a cluster would drop them without a word. So those are sought too,
// in the declarations of the types that lie on the way.
const parts = {
  ServiceMonitor: { spec: "ServiceMonitorSpec" },
  ServiceMonitorSpec: { endpoints: "Endpoint" },
  Endpoint: { relabelings: "RelabelConfig" },
  PrometheusRule: { spec: "PrometheusRuleSpec" },
  PrometheusRuleSpec: { groups: "RuleGroup" },
  RuleGroup: { rules: "Rule" },
};

function* unknown(type, value, at) {
  const declared = readFileSync(`${types}${type}.d.ts`, "utf8");
  for (const [key, inner] of Object.entries(value)) {
    if (!new RegExp(`^\\s*"?${key}"?\\??:`, "m").test(declared)) yield `${at}.${key} is no field of ${type}`;
    const kind = parts[type]?.[key];
    if (kind) for (const each of [inner].flat()) yield* unknown(kind, each, `${at}.${key}`);
  }
}

let text = "";
for await (const part of process.stdin) text += part;
const wrong = [];
for (const object of JSON.parse(text)) {
  const title = `${object.kind}/${object.metadata.name}`;
  wrong.push(...unknown(object.kind, object, title));
  try {
    new models[object.kind](object).validate();
  } catch (error) {
    wrong.push(`${title}: ${error.message.replaceAll("\n", " ")}`);
  }
}
for (const each of wrong) console.log(each);
process.exit(wrong.length ? 1 : 0);
