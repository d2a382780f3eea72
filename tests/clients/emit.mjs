import { existsSync, realpathSync } from "node:fs";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";

const path = process.env.ARTIFACTS_AGENT_SOCKET ?? "/run/artifacts-agent/events.sock";
let socket;

/**
 * Reports one use of the cache. Never throws, never waits, and keeps no process from ending.
 * `event.duration` is the milliseconds that a hit saved, 0 on a miss.
 */
export function emit(event) {
  if (!path) return;
  if (!socket?.writable) {
    socket = connect(path).unref().on("error", () => {}); // no daemon, or a lost one: the next event tries again
    socket.setTimeout(500, () => socket.destroy()); // nobody reads: keep nothing any longer
  }
  if (socket.writableLength < 1 << 20) socket.write(JSON.stringify(event) + "\n");
}

const [, script, sessionId, event, source, hash, duration] = process.argv;
if (script && existsSync(script) && realpathSync(script) === fileURLToPath(import.meta.url)) {
  emit({ sessionId, source, event, hash, duration: Number(duration) }); // it was run, not imported
}
