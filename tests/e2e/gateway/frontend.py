"""A front end that keeps to HTTP/2 as far as it must to be heard, and to nothing else; the option MODE says how."""

import os
import struct
import sys
import time

OPTIONS = [value for name, value in os.environ.items() if name.startswith("BUILDKIT_FRONTEND_OPT_")]
MODE = next(value.partition("=")[2] for value in OPTIONS if value.startswith("build-arg:MODE="))
SERVICE = "/moby.buildkit.v1.frontend.LLBBridge/"
WINDOW = 65_535
FRAME = 16_384


def frame(kind, flags, stream, data=b""):
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data


def text(value):
    raw = value.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


def headers(stream, method):
    pairs = [
        (":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", SERVICE + method),
        ("content-type", "application/grpc"), ("te", "trailers"),
    ]
    block = b"".join(b"\x00" + text(name) + text(value) for name, value in pairs)
    return frame(1, 4, stream, block)


def message(data, length=None):
    return b"\x00" + struct.pack(">I", len(data) if length is None else length) + data


def field(number, data):
    size, length = b"", len(data)
    while True:
        size += bytes([length & 127 | (128 if length > 127 else 0)])
        length >>= 7
        if not length:
            return bytes([number << 3 | 2]) + size + data


def call(stream, method, data=b"", length=None):
    return headers(stream, method) + frame(0, 1, stream, message(data, length))


def say(*parts):
    os.write(1, b"".join(parts))


def hear(wanted=1):
    """Reads frames until so many streams have ended."""
    source, ended = os.fdopen(os.dup(0), "rb"), 0
    while ended < wanted:
        head = source.read(9)
        if len(head) < 9:
            print("the connection was closed", file=sys.stderr)
            return
        length, (kind, flags), stream = int.from_bytes(head[:3], "big"), head[3:5], int.from_bytes(head[5:], "big")
        data = source.read(length)
        if kind == 3 or (kind in (0, 1) and flags & 1):
            ended += 1
        if kind == 7:
            print("the connection is given up", file=sys.stderr)
            return
        if kind == 1 and stream:
            print("answered", file=sys.stderr)


say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0))
if MODE == "never":
    time.sleep(87_654)
elif MODE == "flood":
    # Without reading a single answer: what is kept for it must be bounded.
    for number in range(20_000):
        say(headers(2 * number + 1, "Solve"))
elif MODE == "large":
    # Says that it is 4 GB.
    say(call(1, "Solve", b"x" * 1000, 0xFFFF_FFFF))
    hear()
elif MODE == "others":
    # A result that is none of its own: Return { result: Result { ref: Ref { id } } }.
    say(call(1, "Return", field(1, field(3, field(1, b"1")))))
    hear()
elif MODE == "unknown":
    say(call(1, "Format"))
    hear()
elif MODE == "settings":
    for _ in range(100_000):
        say(frame(4, 0, 0))
elif MODE == "broken":
    say(frame(0, 0, 3, b"x"), frame(77, 255, 2**31 - 1, b"y" * 100))
    hear()
sys.exit(9)
