// A backend that a test drives: a line on stdin is {event, payload, ack?}, sent
// to the agent; a line on stdout is {event, payload} from it, or {ack, payload}.
// backend.py does the same. Environment: PORT, PING_INTERVAL, PING_TIMEOUT (ms),
// TOKEN, SILENT (acks nothing), COUNT (output is counted, not printed).
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
const { Server } = createRequire(new URL("../../backends/node/", import.meta.url))("socket.io");

const number = (name, otherwise) => Number(process.env[name] ?? otherwise);
const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const http = createServer();
const io = new Server(http, { pingInterval: number("PING_INTERVAL", 25000), pingTimeout: number("PING_TIMEOUT", 20000) });
let agent;
const counts = {};

io.use((socket, next) =>
  process.env.TOKEN && socket.handshake.auth.token !== process.env.TOKEN ? next(new Error("bad token")) : next());
io.on("connection", (socket) => {
  socket.onAny((event, payload, ack) => {
    if (event === "agent_register") {
      agent = socket;
      socket.emit("registration_success", { agent_id: payload.agent_id });
    }
    if (typeof ack === "function" && !process.env.SILENT) ack({ ok: true });
    if (event === "command_output" && process.env.COUNT) {
      const c = (counts[payload.command_id] ??= { bytes: 0, pieces: 0, next: 0, gaps: 0 });
      if (payload.seq < c.next) return;
      if (payload.seq > c.next) c.gaps++;
      c.next = payload.seq + 1;
      c.bytes += payload.output.length;
      c.pieces++;
      return;
    }
    if (event === "command_completed" && counts[payload.command_id]) payload.counted = counts[payload.command_id];
    tell({ event, payload });
  });
  socket.on("disconnect", () => tell({ event: "_disconnect", payload: {} }));
});
createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { event, payload, ack } = JSON.parse(line);
    const args = event === "_binary" ? ["execute_command", Buffer.from("binary")] : [event, payload];
    if (ack) agent.emit(...args, (answer) => tell({ ack, payload: answer }));
    else agent.emit(...args);
  })
  .on("close", () => process.exit(0));
http.listen(number("PORT", 0), "127.0.0.1", () => tell({ event: "_listening", payload: { port: String(http.address().port) } }));
