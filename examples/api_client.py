"""Calling an API that fails: retries with growing waits, and an idempotency key that is the same in every try.

    python examples/api_client.py

The server runs in this same file. It refuses the first request, and books the second one but loses the answer; that is the case in
which a client that only tries again pays twice. `ctx.step_key()` is the same in all tries of a step, also after a crash.
"""

import asyncio
import json
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from durable import Context, Durable, NonRetryableError, Retry, step, task


class Bank(BaseHTTPRequestHandler):
    """Books a payment once for each idempotency key."""

    requests = 0
    booked: dict[str, int] = {}  # noqa: RUF012 - one bank for all requests

    def do_POST(self) -> None:
        amount = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["amount"]
        Bank.requests += 1
        if Bank.requests == 1:
            return self.send_error(503, "busy, try again")
        Bank.booked.setdefault(self.headers["Idempotency-Key"], amount)
        if Bank.requests == 2:
            return self.send_error(500, "booked, but the answer is lost")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"booked": amount}).encode())
        return None

    def log_message(self, format: str, *args: object) -> None:
        print(f"  server: {format % args}")


@step(retry=Retry(5, delay=0.1, factor=2, unless=(NonRetryableError,)), timeout=5)
def pay(ctx: Context, url: str, amount: int) -> int:
    if amount <= 0:
        raise NonRetryableError(f"cannot pay {amount}")  # no further try can mend this
    request = urllib.request.Request(
        url,
        data=json.dumps({"amount": amount}).encode(),
        headers={"Idempotency-Key": ctx.step_key(), "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return int(json.load(response)["booked"])


@task
async def settle(url: str, amounts: list[int]) -> int:
    return sum([await pay(url, amount) for amount in amounts])


async def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bank)
    Thread(target=server.serve_forever, daemon=True).start()
    async with Durable() as app:
        handle = await app.start(settle, f"http://127.0.0.1:{server.server_port}/payments", [120, 80])
        total = await handle
        async for event in handle.events(steps=True):
            if event.name == "step:retrying":
                print(f"try {event.data['try']} failed: {event.data['message']}; again in {event.data['wait']:.1f} s")
    server.shutdown()
    print(
        f"paid {total} with {Bank.requests} requests; the bank booked {sum(Bank.booked.values())} under {len(Bank.booked)} keys"
    )


if __name__ == "__main__":
    asyncio.run(main())
