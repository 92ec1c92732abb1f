"""A family that waits for a webhook: the child waits for a call from outside, the parent for its children.

    python examples/webhook.py

An order starts two children: one reserves the goods, one asks a payment provider for the money and waits for its call. Meanwhile the
order is `waiting_for_children` and costs nothing. The call is `handle.send`: durable before the provider gets its answer, and kept if it
comes before the run waits for it. The provider runs in this same file; it calls back some time later.
"""

import asyncio
import json
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread, Timer

from durable import Child, Context, Durable, step, task


@dataclass
class Order:
    goods: Child[str]
    payment: Child[int]


@step
def ask_provider(run_id: str, amount: int, callback: str) -> None:
    """Ask for the money; the provider reports to this address when it has it."""
    print(f"asked the provider for {amount}", flush=True)
    Timer(0.5, call_back, (f"{callback}/{run_id}", amount)).start()


@task
async def reserve_goods(goods: str) -> str:
    return f"2 x {goods}"


@task
async def take_payment(ctx: Context, amount: int, callback: str) -> int:
    await ask_provider(ctx.run_id, amount, callback)
    paid = await ctx.wait_for("paid", timeout=7 * 24 * 3600)  # the time goes on while no process runs
    return int(paid["amount"])


async def ship(order: Order) -> str:
    return f"{order.goods.result} shipped, {order.payment.result} paid"


@task(on_children_complete=ship)
async def fulfil(goods: str, amount: int, callback: str) -> Order:
    return Order(reserve_goods.child(goods), take_payment.child(amount, callback))


# --- what is outside ------------------------------------------------------------------------------------------------------------


def call_back(url: str, amount: int) -> None:
    """The provider has the money, and says so."""
    request = urllib.request.Request(url, json.dumps({"amount": amount}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        print(f"the provider got {response.status}", flush=True)


def webhooks(app: Durable, loop: asyncio.AbstractEventLoop) -> ThreadingHTTPServer:
    """A server that turns `POST /paid/RUN` into a signal for that run."""

    async def receive(run_id: str, body: object) -> None:
        await (await app.get(run_id)).send("paid", body)

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            run_id = self.path.rpartition("/")[2]
            asyncio.run_coroutine_threadsafe(receive(run_id, body), loop).result()
            self.send_response(204)  # only now: what the provider was told is durable
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            print(f"  server: {format % args}", flush=True)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


async def main() -> None:
    async with Durable() as app:
        server = webhooks(app, asyncio.get_running_loop())
        handle = await app.start(fulfil, "tea", 12, f"http://127.0.0.1:{server.server_port}/paid")
        async for event in handle.events():
            if event.name == "waiting":
                print(f"the order waits for {event.data['children']} children", flush=True)
        print(await handle)
        server.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
