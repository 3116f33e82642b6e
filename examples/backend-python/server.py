"""A backend for deployx agents on python-socketio: it runs a batch, undoes one
command, and then the batch. For anything but loopback put it behind TLS.

    apt install python3-socketio python3-aiohttp
    TOKEN=secret /usr/bin/python3 server.py
    deployx agent --url http://127.0.0.1:8000 --token-file token --tree /srv/app
"""

import asyncio
import os
import time

import socketio
from aiohttp import web

sio = socketio.AsyncServer(async_mode="aiohttp")
app = web.Application()
sio.attach(app)
waiting = {}  # (event, id): future


@sio.on("connect")
async def connect(sid, environ, auth=None):
    if os.environ.get("TOKEN") and (auth or {}).get("token") != os.environ["TOKEN"]:
        raise socketio.exceptions.ConnectionRefusedError("bad token")


@sio.on("agent_register")
async def agent_register(sid, agent):
    await sio.emit("registration_success", {"agent_id": agent["agent_id"]}, to=sid)
    print("registered", agent["agent_id"], *[t["path"] for t in agent["trees"]], flush=True)
    if os.environ.get("DEMO") != "0":
        sio.start_background_task(demo, sid, agent["agent_id"])


@sio.on("join_room")
async def join_room(sid, data):
    entered = sio.enter_room(sid, data["room"])
    if entered is not None:  # a coroutine since python-socketio 5.10
        await entered


@sio.on("agent_heartbeat")
async def agent_heartbeat(sid, data):
    pass


@sio.on("command_output")
async def command_output(sid, data):
    """Output is for eyes: seq tells repeated and missing pieces."""
    print(f"[{data['command_id']} {data['stream']} {data['seq']}] {data['output']}", end="", flush=True)


def result(event, key):
    """Results are sent again until they are acknowledged, which python-socketio
    does when the handler returns: keep them first, and expect one twice."""

    @sio.on(event)
    async def handler(sid, data):
        print(event, data.get(key), "ok" if data["success"] else data["error"], data.get("snapshot_id", ""), flush=True)
        future = waiting.get((event, data.get(key)))
        if future and not future.done():
            future.set_result(data)
        return {"ok": True}


result("command_completed", "command_id")
result("batch_command_completed", "batch_id")
result("batch_execution_completed", "batch_id")


@sio.on("rollback_completed")
async def rollback_completed(sid, data):
    key = data.get("snapshot_id") or data.get("batch_id")
    print("rollback_completed", key, "ok" if data["success"] else data["error"], flush=True)
    future = waiting.get(("rollback_completed", key))
    if future and not future.done():
        future.set_result(data)


@sio.on("error")
async def error(sid, data):
    print("agent:", data.get("event"), data.get("code"), data.get("message"), flush=True)


async def ask(sid, request, payload, event, key):
    """Sends a request and waits for the event that answers it."""
    future = waiting[event, key] = asyncio.get_running_loop().create_future()
    ack = await sio.call(request, payload, to=sid, timeout=10)
    if not ack["ok"]:
        raise RuntimeError(f"{request}: {ack['error']['message']}")
    return await asyncio.wait_for(future, 60)


async def demo(sid, agent_id):
    batch = f"demo-{time.time_ns()}"
    commands = ["mkdir -p backend", "cd backend/", "mkdir logs", "echo hello > logs/first", "cat logs/first"]
    done = await ask(sid, "execute_batch_persistent", {"batch_id": batch, "commands": commands},
                     "batch_execution_completed", batch)
    print("batch", done["success"], done["successful_commands"], "of", done["total_commands"], flush=True)

    one = await ask(sid, "execute_command", {"command_id": f"{batch}-extra", "command": "rm -rf logs"},
                    "command_completed", f"{batch}-extra")
    await ask(sid, "rollback_command", {"snapshot_id": one["snapshot_id"]}, "rollback_completed", one["snapshot_id"])
    await ask(sid, "rollback_batch", {"batch_id": batch}, "rollback_completed", batch)
    print("demo done:", agent_id, flush=True)


async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(os.environ.get("PORT", 8000)))
    await site.start()
    print("listening", site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
