// Records events with the unmodified @vercel/sdk: over TCP with the SDK's own client, over a Unix socket with node:http as its fetcher.
//
// stdin: {"whole": bool, "serverURL": …, "socket": …, "token": …, "requests": [{slug, requestBody, xArtifactClientCi, …}]}
// stdout: for each request a line, {"ok": true} or {"ok": false, "error": NAME, "status": …, "body": …}
// With "whole" the SDK is used as most do, `new Vercel(…).artifacts`, which loads all of it; else its standalone function.
import http from "node:http";
import { text } from "node:stream/consumers";
import { VercelCore } from "@vercel/sdk/core.js";
import { artifactsRecordEvents } from "@vercel/sdk/funcs/artifactsRecordEvents.js";
import { HTTPClient } from "@vercel/sdk/lib/http.js";

const overSocket = (socketPath) => async (request) => {
  const { pathname, search } = new URL(request.url);
  const body = Buffer.from(await request.arrayBuffer());
  const headers = Object.fromEntries(request.headers);
  return new Promise((resolve, reject) => {
    http
      .request({ socketPath, path: pathname + search, method: request.method, headers }, async (answer) => {
        resolve(new Response(await text(answer), { status: answer.statusCode, headers: answer.headers }));
      })
      .on("error", reject)
      .end(body);
  });
};

const recorder = async ({ whole, serverURL, socket, token }) => {
  const httpClient = socket ? new HTTPClient({ fetcher: overSocket(socket) }) : undefined;
  const options = { serverURL, bearerToken: token, httpClient };
  if (!whole) {
    const client = new VercelCore(options);
    return async (request) => {
      const result = await artifactsRecordEvents(client, request);
      if (!result.ok) throw result.error;
    };
  }
  const { Vercel } = await import("@vercel/sdk");
  const vercel = new Vercel(options);
  return (request) => vercel.artifacts.recordEvents(request);
};

const job = JSON.parse(await text(process.stdin));
const record = await recorder(job);
for (const request of job.requests) {
  const outcome = await record(request).then(
    () => ({ ok: true }),
    (error) => ({ ok: false, error: error.name, status: error.statusCode, body: error.body ?? String(error) }),
  );
  console.log(JSON.stringify(outcome));
}
