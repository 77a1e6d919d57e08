"""A small OpenAI-compatible server on loopback for the tests and chapter 01d: it answers by a script of behaviours and remembers what it was asked."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = ("A dark infrared street with two people and a car, the resolution is {size}. One person stands at the left [10, 20, 40, 80], the other walks "
        "near the middle of the road. The car is parked in front of a low building. Bright windows and warm engines stand out against cold ground, and "
        "trees line the far side of the street. In short, warm objects are easy to tell from their cold surroundings.")


class ChatServer:
    """`with ChatServer("429", "good") as server:` answers the first request with 429, the second and all later ones with a good reply.

    Behaviours: 'good', 'text:...' (that reply), 'json:...' (that body), 'key' (a good reply that repeats the key), '429', '500', 'slow' (answers after `delay` seconds), 'html' (not JSON), 'broken' (JSON cut off), 'latin' (not UTF-8), 'empty', 'null',
    'refusal', 'no-choices', 'cut' (finish_reason length), '401' (repeats the key, as some servers do), '404', '400'."""

    def __init__(self, *script: str, delay: float = 3.0):
        self.script, self.delay, self.requests, self.keys = list(script) or ["good"], delay, [], []
        self.most_at_once, self._at_once, self._lock = 0, 0, threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args): pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner._lock:
                    number = len(owner.requests)
                    owner.requests.append(body)
                    owner.keys.append(self.headers.get("Authorization", ""))
                    owner._at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner._at_once)
                try: self.answer(owner.script[min(number, len(owner.script) - 1)], body)
                except (BrokenPipeError, ConnectionResetError): pass  # the client gave up waiting
                finally:
                    with owner._lock: owner._at_once -= 1

            def send(self, status, content, kind="application/json", **headers):
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items(): self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(raw)

            def reply(self, text, finish="stop", refusal=None):
                prompt = sum(len(json.dumps(message)) for message in self.body["messages"]) // 4
                self.send(200, {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.body["model"],
                                "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, "refusal": refusal}}],
                                "usage": {"prompt_tokens": prompt, "completion_tokens": len(text or "") // 4, "total_tokens": prompt + len(text or "") // 4}})

            def answer(self, behaviour, body):
                self.body = body
                size = next((word.strip(".,'") for message in body["messages"] for word in str(message["content"]).split() if word[0].isdigit() and "x" in word), "1x1")
                failure = lambda text, kind: {"error": {"message": text, "type": kind, "code": kind, "param": None}}
                if behaviour == "slow": time.sleep(owner.delay); behaviour = "good"
                if behaviour == "good": time.sleep(0.02); self.reply(GOOD.format(size=size))
                elif behaviour.startswith("text:"): self.reply(behaviour[5:])
                elif behaviour.startswith("json:"): self.send(200, behaviour[5:].encode())
                elif behaviour == "key": self.reply(GOOD.format(size=size) + f" It said {self.headers.get('Authorization', '')[7:]}.")
                elif behaviour == "429": self.send(429, failure("too many requests", "rate_limit_exceeded"), retry_after_ms="20")
                elif behaviour == "500": self.send(500, failure("server fell over", "server_error"), retry_after_ms="20")
                elif behaviour == "401": self.send(401, failure(f"Incorrect API key provided: {self.headers.get('Authorization', '')[7:]}", "invalid_api_key"))
                elif behaviour == "404": self.send(404, failure(f"The model {body['model']} does not exist", "model_not_found"))
                elif behaviour == "400": self.send(400, failure("context length exceeded", "context_length_exceeded"))
                elif behaviour == "html": self.send(200, b"<html>a proxy's greeting</html>", "text/html")
                elif behaviour == "broken": self.send(200, b'{"id": "chatcmpl-1", "choices": [', "application/json")
                elif behaviour == "latin": self.send(200, '{"id": "café"}'.encode("latin-1"))
                elif behaviour == "no-choices": self.send(200, {"id": "1", "object": "chat.completion", "choices": []})
                elif behaviour == "empty": self.reply("  \n ")
                elif behaviour == "null": self.reply(None)
                elif behaviour == "refusal": self.reply(None, refusal="I can't help with that.")
                elif behaviour == "cut": self.reply("A dark infrared street with two people and", finish="length")
                else: raise ValueError(behaviour)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str: return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
