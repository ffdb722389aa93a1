// Asks a gateway of an orbitmesh for a completion, and prints it as it comes.
//
//   node dist/src/generate.js HOST:PORT IDENTITY_DIRECTORY DEPLOYMENT "a prompt" [TOKENS]
//
// The identity is what `orbitmesh pki issue --role client` wrote: ca.pem, tls.pem, tls.key. `--json` prints a line an event.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { GatewayService } from "../gen/orbitmesh/v1/gateway_pb.js";

const DEADLINE_MS = 60_000;

export function connect(address: string, identity: string, gateway = "gateway") {
  const read = (name: string) => readFileSync(join(identity, name));
  return createGrpcTransport({
    baseUrl: `https://${address}`,
    nodeOptions: {
      ca: read("ca.pem"),
      cert: read("tls.pem"),
      key: read("tls.key"),
      // Certificates carry the names of the mesh, not of machines.
      servername: `${gateway}.gateway.orbitmesh`,
    },
    defaultTimeoutMs: DEADLINE_MS,
  });
}

async function main(words: string[]): Promise<number> {
  const json = words.includes("--json");
  const [address, identity, deployment, prompt, tokens = "64"] = words.filter((word) => word !== "--json");
  if (!address || !identity || !deployment || prompt === undefined) {
    console.error('usage: generate.js HOST:PORT IDENTITY_DIRECTORY DEPLOYMENT "a prompt" [TOKENS] [--json]');
    return 2;
  }
  const client = createClient(GatewayService, connect(address, identity));
  const request = {
    deployment,
    prompt: { case: "text" as const, value: prompt },
    maxNewTokens: Number(tokens),
  };
  try {
    for await (const { event } of client.generate(request)) {
      if (event.case === "token") {
        if (json) {
          console.log(JSON.stringify({ id: event.value.id, position: event.value.position, text: event.value.text }));
        } else {
          process.stdout.write(event.value.text);
        }
      } else if (event.case === "finished" && json) {
        console.log(JSON.stringify({ newTokens: event.value.newTokens, reason: event.value.reason }));
      }
    }
  } catch (error) {
    const refused = ConnectError.from(error);
    console.error(`${Code[refused.code]}: ${refused.rawMessage}`);
    return 1;
  }
  if (!json) {
    process.stdout.write("\n");
  }
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
