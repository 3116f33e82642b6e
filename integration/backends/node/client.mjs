// Node's socket.io-client against a server of ours: node client.mjs URL TRANSPORTS.
// Prints ok, or fails at the first thing that is not as it should be.
import assert from "node:assert/strict";
import { io } from "socket.io-client";

let step = "start";
setTimeout(() => {
  console.log(`stuck after: ${step}`);
  process.exit(1);
}, 15000);

const [, , url, list] = process.argv;
const transports = list.split(",");
const connect = (namespace, more) => io(url + namespace, { transports, forceNew: true, ...more });
const once = (socket, event) => new Promise((resolve) => socket.once(event, (...args) => resolve(args)));
const ask = (socket, ...args) => socket.timeout(5000).emitWithAck(...args);

for (const namespace of ["/", "/admin"]) {
  const socket = connect(namespace);
  await once(socket, "connect");
  assert.ok(socket.id);
  step = `connect ${namespace} on ${socket.io.engine.transport.name}`;
  if (transports.length > 1 && socket.io.engine.transport.name !== "websocket") await once(socket.io.engine, "upgrade");
  assert.equal(socket.io.engine.transport.name, transports.at(-1));

  step = "upgrade";
  assert.equal(await ask(socket, "echo", "€\u2028\x1e"), "€\u2028\x1e");
  assert.deepEqual(await ask(socket, "echo", Buffer.from([0, 255])), Buffer.from([0, 255]));
  const big = "x".repeat(900000);
  assert.equal(await ask(socket, "echo", big), big);

  step = "echo";
  socket.on("question", (...args) => args.pop()("answer", ...args));
  assert.equal(await ask(socket, "ask", 1), "answer");

  const got = [];
  const all = new Promise((resolve) => socket.on("echo", (i) => (got.push(i), i === 999 && resolve())));
  for (let i = 0; i < 1000; i++) socket.emit("echo", i);
  await all;
  assert.deepEqual(got, [...Array(1000).keys()]);

  step = "1000 echoes";
  await ask(socket, "join");
  socket.emit("say", "hello", Buffer.from("b"));
  assert.deepEqual(await once(socket, "said"), ["hello", Buffer.from("b")]);

  step = "rooms";
  await new Promise((resolve) => setTimeout(resolve, 700)); // some heartbeats
  assert.ok(socket.connected);

  socket.emit("bye");
  assert.deepEqual((await once(socket, "disconnect"))[0], "io server disconnect");
  step = "bye";
  socket.connect(); // over the same session, if it still is one
  await once(socket, "connect");
  socket.disconnect();
  step = `all of ${namespace}`;
}

const refused = connect("/guarded", { auth: { token: "bad" } });
const [err] = await once(refused, "connect_error");
assert.equal(err.message, "bad token");
assert.deepEqual(err.data, { hint: "say good" });
refused.auth = { token: "good" };
refused.connect();
await once(refused, "connect");
refused.disconnect();

const none = connect("/none");
assert.equal((await once(none, "connect_error"))[0].message, "Invalid namespace");
none.disconnect();
console.log("ok");
process.exit(0);
