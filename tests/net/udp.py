"""Datagrams of 1,000 bytes, 40 of them in each send (UDP_SEGMENT), each of other content: `send ADDRESS`, `receive ADDRESS`."""

import random
import socket
import sys
import time

UDP_SEGMENT = 103  # <linux/udp.h>
SO_RCVBUFFORCE = 33  # <asm-generic/socket.h>; Python does not name it
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
        end = time.monotonic() + 60
        while True:
            try:
                s.send(b"?")
                if s.recv(10) == b"!":
                    break
            except (TimeoutError, ConnectionRefusedError):
                if time.monotonic() > end:
                    sys.exit("the receiver does not answer")
                time.sleep(0.05)
        for n in range(SENDS):
            s.send(b"".join(payload(n * PER_SEND + i) for i in range(PER_SEND)))
        return
    # All of them, if this program is held up while they come.
    s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    s.bind((address, PORT))
    s.settimeout(60)
    got = set()
    while len(got) < SENDS * PER_SEND:
        try:
            data, sender = s.recvfrom(65536)
        except TimeoutError:
            missing = sorted(set(range(SENDS * PER_SEND)) - got)
            sys.exit(f"{len(missing)} of {SENDS * PER_SEND} datagrams did not come: {missing[:20]}...")
        if data == b"?":
            s.sendto(b"!", sender)
            continue
        number = int.from_bytes(data[:4], "big")
        assert data == payload(number), f"datagram {number} has {len(data)} bytes, or others"
        got.add(number)
    print(f"{len(got)} datagrams, all whole")


main()
