/*
 * bursts EAL-ARGUMENTS -- PACKETS SECONDS: packets that go round between two ports on one cable, and the CPU time of the thread that
 * moves them, of receiving and sending apart.
 *
 * The thread's own CPU time is read before and after each call: calls that find nothing are left out, so are waiting and whatever
 * else runs on the machine. After a round that found nothing the thread sleeps for a moment, so that bursts are of the length that
 * they have when there is more work than time.
 *
 * Prints one line `key=value ...`: `received` and `sent` packets, `bursts` of each, `receive` and `send` in nanoseconds, `seconds` by the clock,
 * `nic_violations`, and `lost`, of PACKETS, after all came to rest.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "program.h"

#define PORTS 2
#define BURST 32
#define FRAME 60
/* Reads of the clock, to know what one costs. */
#define READS 20000

static double at(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static double cpu(void)
{
	return at(CLOCK_THREAD_CPUTIME_ID);
}

/* A way, receiving or sending. */
struct way {
	double ns;
	uint64_t packets, bursts;
};

static void count(struct way *way, double ns, uint16_t packets)
{
	way->ns += ns;
	way->packets += packets;
	way->bursts++;
}

static void start_port(uint16_t port, struct rte_mempool *pool)
{
	struct rte_eth_conf conf = { 0 };

	if (rte_eth_dev_configure(port, 1, 1, &conf) != 0 ||
	    rte_eth_rx_queue_setup(port, 0, 4096, SOCKET_ID_ANY, NULL, pool) != 0 ||
	    rte_eth_tx_queue_setup(port, 0, 4096, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(port) != 0 ||
	    rte_eth_promiscuous_enable(port) != 0)
		fail("a port does not start");
}

/* Sends all of a burst, however often the NIC has no room. */
static void send_all(uint16_t port, struct rte_mbuf **packets, uint16_t wanted, double clock_ns, struct way *send)
{
	uint16_t done = 0;

	while (done < wanted) {
		double before = cpu();
		uint16_t sent = rte_eth_tx_burst(port, 0, packets + done, wanted - done);

		if (sent > 0)
			count(send, cpu() - before - clock_ns, sent);
		else
			usleep(20);
		done += sent;
	}
}

static void first(uint16_t port, struct rte_mempool *pool, unsigned int packets, struct way *send)
{
	while (packets > 0) {
		struct rte_mbuf *burst[BURST];
		unsigned int n, wanted = packets < BURST ? packets : BURST;

		if (rte_pktmbuf_alloc_bulk(pool, burst, wanted) != 0)
			fail("no buffers");
		for (n = 0; n < wanted; n++) {
			char *frame = rte_pktmbuf_append(burst[n], FRAME);

			if (frame == NULL)
				fail("a buffer is too short");
			memset(frame, 0, FRAME);
			memset(frame, 2, 12);
			frame[12] = 8;
		}
		send_all(port, burst, wanted, 0, send);
		packets -= wanted;
	}
}

/* Takes everything off the ports, and gives how much that was. Until all that is expected has come the NIC is given time, which it
 * needs when it is being reset; then there is a moment for what should not come. */
static uint64_t rest(uint64_t expected)
{
	uint64_t found = 0;
	int idle = 0;

	while (idle < (found < expected ? 20000 : 200)) {
		uint16_t port, n, before = idle;

		idle++;
		for (port = 0; port < PORTS; port++) {
			struct rte_mbuf *burst[BURST];

			n = rte_eth_rx_burst(port, 0, burst, BURST);
			rte_pktmbuf_free_bulk(burst, n);
			found += n;
			if (n > 0)
				idle = 0;
		}
		if (idle == before + 1)
			usleep(1000);
	}
	return found;
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv), n;
	struct way receive = { 0 }, send = { 0 }, ignored = { 0 };
	double clock_ns, start, end;
	struct rte_mempool *pool;
	unsigned int packets;
	uint64_t left;
	uint16_t port;

	if (used < 0 || argc - used != 3 || rte_eth_dev_count_avail() != PORTS)
		fail("usage: bursts EAL-ARGUMENTS -- PACKETS SECONDS, with two ports");
	packets = strtoul(argv[used + 1], NULL, 10);
	pool = rte_pktmbuf_pool_create("pool", 32767, 256, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL)
		fail("no pool");
	RTE_ETH_FOREACH_DEV(port)
		start_port(port, pool);
	first(0, pool, packets, &ignored);

	clock_ns = cpu();
	for (n = 0; n < READS; n++)
		cpu();
	clock_ns = (cpu() - clock_ns) / READS;
	start = at(CLOCK_MONOTONIC);
	end = start + atof(argv[used + 2]) * 1e9;
	while (at(CLOCK_MONOTONIC) < end) {
		int found = 0;

		for (port = 0; port < PORTS; port++) {
			struct rte_mbuf *burst[BURST];
			double before = cpu();
			uint16_t got = rte_eth_rx_burst(port, 0, burst, BURST);

			if (got == 0)
				continue;
			count(&receive, cpu() - before - clock_ns, got);
			send_all(port, burst, got, clock_ns, &send);
			found = 1;
		}
		if (!found)
			usleep(50);
	}
	end = at(CLOCK_MONOTONIC);
	left = rest(packets);
	printf("received=%lu sent=%lu receive_bursts=%lu send_bursts=%lu receive=%.0f send=%.0f clock=%.1f seconds=%.3f lost=%ld nic_violations=%lu\n",
	       receive.packets, send.packets, receive.bursts, send.bursts, receive.ns, send.ns, clock_ns, (end - start) / 1e9,
	       (long)(packets - left), counter(0, "nic_violations"));
	RTE_ETH_FOREACH_DEV(port) {
		rte_eth_dev_stop(port);
		rte_eth_dev_close(port);
	}
	return rte_eal_cleanup();
}
