// A backend for deployx agents on Node's socket.io: it runs a batch, undoes one
// command of it, and then all of it. For anything but loopback put it behind
// TLS.
//
//   npm install && TOKEN=secret node server.mjs
//   deployx agent --url http://127.0.0.1:8000 --token-file token --tree /srv/app
import { EventEmitter } from "node:events";
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const io = new Server(http, { maxHttpBufferSize: 1e6 });

io.use((socket, next) => {
  const { token } = socket.handshake.auth;
  if (process.env.TOKEN && token !== process.env.TOKEN) return next(new Error("bad token"));
  next();
});

io.on("connection", (socket) => {
  socket.data.results = new EventEmitter();
  socket.on("agent_register", (agent) => {
    socket.emit("registration_success", { agent_id: agent.agent_id });
    console.log("registered", agent.agent_id, agent.trees.map((t) => t.path).join(" "));
    demo(socket, agent).catch((err) => console.error("demo:", err.message ?? err));
  });
  socket.on("join_room", ({ room }) => socket.join(room));
  socket.on("agent_heartbeat", () => {});

  // Output is for eyes: seq tells repeated and missing pieces.
  socket.on("command_output", ({ command_id, stream, seq, output }, ack) => {
    process.stdout.write(`[${command_id} ${stream} ${seq}] ${output}`);
    ack?.();
  });

  // Results are sent again until they are acknowledged: do it when they are
  // kept, and expect one twice.
  for (const event of ["command_completed", "batch_command_completed", "batch_execution_completed", "rollback_completed"]) {
    socket.on(event, (result, ack) => {
      const id = result.command_id ?? result.batch_id ?? result.snapshot_id;
      console.log(event, id, result.success ? "ok" : result.error, result.snapshot_id ?? "");
      socket.data.results.emit(event, result);
      ack?.({ ok: true });
    });
  }
  socket.on("error", (err) => console.error("agent:", err.event, err.code, err.message));
});

// ask sends a request and waits for the event that answers it.
function ask(socket, request, payload, event, matches) {
  return new Promise((resolve, reject) => {
    const done = (result) => {
      if (!matches(result)) return;
      socket.data.results.off(event, done);
      resolve(result);
    };
    socket.data.results.on(event, done);
    socket.timeout(10000).emit(request, payload, (err, ack) => {
      if (!err && ack.ok) return;
      socket.data.results.off(event, done);
      reject(err ?? new Error(`${request}: ${ack.error.message}`));
    });
  });
}

async function demo(socket, agent) {
  if (process.env.DEMO === "0") return;
  const batch_id = `demo-${Date.now()}`;
  const commands = ["mkdir -p backend", "cd backend/", "mkdir logs", "echo hello > logs/first", "cat logs/first"];
  const batch = await ask(socket, "execute_batch_persistent", { batch_id, commands },
    "batch_execution_completed", (r) => r.batch_id === batch_id);
  console.log("batch", batch.success, `${batch.successful_commands} of ${batch.total_commands}`);

  const one = await ask(socket, "execute_command", { command_id: `${batch_id}-extra`, command: "rm -rf logs" },
    "command_completed", (r) => r.command_id === `${batch_id}-extra`);
  await ask(socket, "rollback_command", { snapshot_id: one.snapshot_id },
    "rollback_completed", (r) => r.snapshot_id === one.snapshot_id);
  await ask(socket, "rollback_batch", { batch_id },
    "rollback_completed", (r) => r.batch_id === batch_id);
  console.log("demo done:", agent.agent_id);
}

http.listen(Number(process.env.PORT ?? 8000), "127.0.0.1", () => console.log(`listening ${http.address().port}`));
