"""A Socket.IO server on loopback for the tests of a client: python-socketio.

../node/server.mjs does the same; ../README.md says what.
"""

import asyncio
import os
import sys

import socketio
from aiohttp import web

sio = socketio.AsyncServer(
    async_mode="aiohttp",
    cors_allowed_origins="*",
    ping_interval=int(os.environ.get("PING_INTERVAL", 25000)) / 1000,
    ping_timeout=int(os.environ.get("PING_TIMEOUT", 20000)) / 1000,
    max_http_buffer_size=int(os.environ.get("MAX_PAYLOAD", 1000000)),
)
app = web.Application()
sio.attach(app)
seen = []  # what "item" brought, over all connections


def serve(namespace):
    def on(name):
        return lambda f: sio.on(name, handler=f, namespace=namespace)

    @on("echo")
    async def echo(sid, *args):
        # Whether an ack is wanted is not told: the answer goes both ways.
        await sio.emit("echo", args, to=sid, namespace=namespace)
        return args

    @on("ask")
    async def ask(sid, *args):
        answer = asyncio.get_running_loop().create_future()
        await sio.emit("question", args, to=sid, namespace=namespace,
                       callback=lambda *a: answer.done() or answer.set_result(a))
        return await asyncio.wait_for(answer, 10)

    @on("flood")
    async def flood(sid, n):
        for i in range(n):
            await sio.emit("tick", i, to=sid, namespace=namespace)

    @on("text")
    async def text(sid, n):
        return "x" * n

    @on("blob")
    async def blob(sid, n):
        return b"\7" * n

    @on("item")  # each event has its own task: in order as long as it awaits nothing
    async def item(sid, i):
        seen.append(i)
        return i

    @on("seen")
    async def all_seen(sid):
        return seen

    @on("join")
    async def join(sid, room):
        sio.enter_room(sid, room, namespace=namespace)

    @on("say")
    async def say(sid, room, what):
        await sio.emit("said", what, room=room, namespace=namespace)

    @on("bye")
    async def bye(sid):
        await sio.disconnect(sid, namespace=namespace)


@sio.on("connect")
async def connect(sid, environ, auth=None):
    return True


@sio.on("connect", namespace="/guarded")
async def connect_guarded(sid, environ, auth=None):
    if (auth or {}).get("token") != "good":
        raise socketio.exceptions.ConnectionRefusedError("bad token", {"hint": "say good"})


@sio.on("connect", namespace="/mute")
async def connect_mute(sid, environ, auth=None):
    await asyncio.Event().wait()


async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(os.environ.get("PORT", 0)))
    await site.start()
    print("listening", site._server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    # Ends with the test, however that ends.
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


for name in ("/", "/admin", "/guarded", "/mute"):
    serve(name)
asyncio.run(main())
