"""A backend that a test drives, as server.mjs beside this file tells."""

import asyncio
import json
import os
import sys

import socketio
from aiohttp import web

env = os.environ.get
sio = socketio.AsyncServer(async_mode="aiohttp", ping_interval=int(env("PING_INTERVAL", 25000)) / 1000,
                           ping_timeout=int(env("PING_TIMEOUT", 20000)) / 1000)
app = web.Application()
sio.attach(app)
agent = None
counts = {}


def tell(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


@sio.on("connect")
async def connect(sid, environ, auth=None):
    if env("TOKEN") and (auth or {}).get("token") != env("TOKEN"):
        raise socketio.exceptions.ConnectionRefusedError("bad token")


@sio.on("disconnect")
async def disconnect(sid, *reason):
    tell({"event": "_disconnect", "payload": {}})


def handle(event):
    @sio.on(event)
    async def handler(sid, payload):
        global agent
        if event == "command_output" and env("COUNT"):
            c = counts.setdefault(payload["command_id"], {"bytes": 0, "pieces": 0, "next": 0, "gaps": 0})
            if payload["seq"] >= c["next"]:
                c["gaps"] += payload["seq"] > c["next"]
                c["next"] = payload["seq"] + 1
                c["bytes"] += len(payload["output"])
                c["pieces"] += 1
            return {"ok": True}
        if event == "command_completed" and payload["command_id"] in counts:
            payload["counted"] = counts[payload["command_id"]]
        if event == "agent_register":
            agent = sid
            await sio.emit("registration_success", {"agent_id": payload["agent_id"]}, to=sid)
        tell({"event": event, "payload": payload})
        return {"ok": True}


# python-socketio 5.7 has no handler for all events.
for name in """agent_register join_room agent_heartbeat command_started command_output command_completed
    deployment_command_output deployment_command_completed batch_command_progress batch_command_completed
    batch_execution_completed rollback_completed rollback_status rollback_result batch_rollback_status
    batch_rollback_result snapshots_list_result redo_completed shell_started shell_stopped error""".split():
    handle(name)


async def serve_stdin():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        c = json.loads(line)
        if c["event"] == "_binary":
            c["event"], c["payload"] = "execute_command", b"binary"
        ack = c.get("ack")
        answered = (lambda *a, ack=ack: tell({"ack": ack, "payload": a[0] if a else None})) if ack else None
        await sio.emit(c["event"], c["payload"], to=agent, callback=answered)
    os._exit(0)


async def main():
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", int(env("PORT", 0)))
    await site.start()
    tell({"event": "_listening", "payload": {"port": str(site._server.sockets[0].getsockname()[1])}})
    await serve_stdin()


asyncio.run(main())
