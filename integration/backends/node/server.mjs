// A Socket.IO server on loopback for the tests of a client: Node's socket.io.
// ../python/server.py does the same; ../README.md says what.
import { createServer } from "node:http";
import { Server } from "socket.io";

const number = (name, otherwise) => Number(process.env[name] ?? otherwise);

const http = createServer();
const io = new Server(http, {
  pingInterval: number("PING_INTERVAL", 25000),
  pingTimeout: number("PING_TIMEOUT", 20000),
  maxHttpBufferSize: number("MAX_PAYLOAD", 1000000),
  transports: (process.env.TRANSPORTS ?? "polling,websocket").split(","),
  ...(process.env.RECOVERY && { connectionStateRecovery: { maxDisconnectionDuration: 60000 } }),
});

const seen = []; // what "item" brought, over all connections

function serve(socket) {
  socket.on("echo", (...args) => {
    const ack = typeof args.at(-1) === "function" && args.pop();
    if (ack) ack(...args);
    else socket.emit("echo", ...args);
  });
  socket.on("ask", (...args) => {
    const ack = args.pop();
    socket.timeout(10000).emit("question", ...args, (err, ...answer) => ack(...(err ? [String(err)] : answer)));
  });
  socket.on("flood", (n) => {
    for (let i = 0; i < n; i++) socket.emit("tick", i);
  });
  socket.on("text", (n, ack) => ack("x".repeat(n)));
  socket.on("blob", (n, ack) => ack(Buffer.alloc(n, 7)));
  socket.on("item", (i, ack) => {
    seen.push(i);
    if (typeof ack === "function") ack(i);
  });
  socket.on("seen", (ack) => ack(seen));
  socket.on("join", (room, ack) => {
    socket.join(room);
    ack();
  });
  socket.on("say", (room, what, ack) => {
    io.to(room).emit("said", what);
    ack();
  });
  socket.on("bye", () => socket.disconnect());
  socket.on("cut", () => socket.conn.close());
}

io.on("connection", serve);
io.of("/admin").on("connection", serve);
io.of("/guarded")
  .use((socket, next) => {
    if (socket.handshake.auth.token === "good") return next();
    const err = new Error("bad token");
    err.data = { hint: "say good" };
    next(err);
  })
  .on("connection", serve);
io.of("/mute").use(() => {});

http.listen(number("PORT", 0), "127.0.0.1", () => console.log(`listening ${http.address().port}`));
process.stdin.resume().on("end", () => process.exit(0)); // ends with the test, however that ends
