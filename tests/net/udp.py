"""Datagrams of 1,000 bytes, 40 of them in each send (UDP_SEGMENT), each of other content: `send ADDRESS`, `receive ADDRESS`."""

import random
import socket
import sys

UDP_SEGMENT = 103  # <linux/udp.h>
SIZE, PER_SEND, SENDS, PORT = 1000, 40, 20, 7799


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") + random.Random(number).randbytes(SIZE - 4)


def main() -> None:
    role, address = sys.argv[1:]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    if role == "send":
        s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        s.connect((address, PORT))
        # The first go until the receiver is there: it says so.
        s.settimeout(0.2)
        for _ in range(50):
            try:
                s.send(b"?")
                if s.recv(10) == b"!":
                    break
            except (TimeoutError, ConnectionRefusedError):
                pass
        for n in range(SENDS):
            s.send(b"".join(payload(n * PER_SEND + i) for i in range(PER_SEND)))
        return
    s.bind((address, PORT))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    s.settimeout(10)
    got = set()
    while len(got) < SENDS * PER_SEND:
        data, sender = s.recvfrom(65536)
        if data == b"?":
            s.sendto(b"!", sender)
            continue
        number = int.from_bytes(data[:4], "big")
        assert data == payload(number), f"datagram {number} has {len(data)} bytes, or others"
        got.add(number)
    print(f"{len(got)} datagrams, all whole")


main()
