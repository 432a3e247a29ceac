/*
 * rate EAL-ARGUMENTS -- RULES ROUNDS: the rules of `dpdk-test-flow-perf --ingress --ether --ipv4 --queue`, created and destroyed
 * on each port, and what that program does not look at: when the NIC has confirmed them all, and what each thread spent.
 *
 * Prints `port=N name=... key=value ...` per port and round. Times are in microseconds: `create` and `destroy` of the calls,
 * `inserted` and `deleted` from the first call on until the NIC's counters say that all rules are in it, or out; `cpu:THREAD` is
 * the CPU time of a thread meanwhile, of creation and destruction apart.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_malloc.h>

#include "program.h"

#define THREADS 16
/* A NIC that has not confirmed its rules by then never will. */
#define PATIENCE 120e6

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* CPU time of this process's threads. */
struct threads {
	int count;
	char name[THREADS][32];
	double us[THREADS];
};

static void read_threads(struct threads *out)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *task;

	out->count = 0;
	while (tasks != NULL && (task = readdir(tasks)) != NULL && out->count < THREADS) {
		char path[300];
		unsigned long long ns;
		FILE *file;

		if (task->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/schedstat", task->d_name);
		file = fopen(path, "r");
		if (file == NULL || fscanf(file, "%llu", &ns) != 1)
			fail("no schedstat");
		fclose(file);
		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", task->d_name);
		file = fopen(path, "r");
		if (file == NULL || fscanf(file, "%31s", out->name[out->count]) != 1)
			fail("no comm");
		fclose(file);
		out->us[out->count++] = ns / 1e3;
	}
	if (tasks != NULL)
		closedir(tasks);
}

static void print_threads(const char *phase, const struct threads *before)
{
	struct threads after;
	int n, other;

	read_threads(&after);
	for (n = 0; n < after.count; n++) {
		double us = after.us[n];

		for (other = 0; other < before->count; other++)
			if (strcmp(before->name[other], after.name[n]) == 0)
				us -= before->us[other];
		if (us > 1000)
			printf(" %s:%s=%.0f", phase, after.name[n], us);
	}
}

/* Waits until a counter has reached a value; false for a port that has no such counter, as a driver that does nothing. */
static int wait_for(uint16_t port, const char *name, uint64_t value)
{
	double start = now();

	if (counter(port, "nic_completions") == 0)
		return 0;
	while (counter(port, name) < value) {
		if (now() - start > PATIENCE)
			fail("the NIC does not confirm what it was given");
		usleep(200);
	}
	return 1;
}

static void start_port(uint16_t port)
{
	struct rte_eth_conf conf = { 0 };
	struct rte_mempool *pool;
	char name[32];

	snprintf(name, sizeof(name), "pool%u", port);
	pool = rte_pktmbuf_pool_create(name, 1023, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL || rte_eth_dev_configure(port, 1, 1, &conf) != 0 ||
	    rte_eth_rx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL, pool) != 0 ||
	    rte_eth_tx_queue_setup(port, 0, 256, SOCKET_ID_ANY, NULL) != 0 || rte_eth_dev_start(port) != 0)
		fail("a port does not start");
}

static void one_round(uint16_t port, uint32_t rules, struct rte_flow **flows)
{
	struct rte_flow_attr attr = { .ingress = 1 };
	struct rte_flow_item_eth eth = { 0 }, eth_mask = { 0 };
	struct rte_flow_item_ipv4 ipv4 = { 0 }, ipv4_mask = { 0 };
	struct rte_flow_action_queue queue = { .index = 0 };
	struct rte_flow_item items[] = {
		{ .type = RTE_FLOW_ITEM_TYPE_ETH, .spec = &eth, .mask = &eth_mask },
		{ .type = RTE_FLOW_ITEM_TYPE_IPV4, .spec = &ipv4, .mask = &ipv4_mask },
		{ .type = RTE_FLOW_ITEM_TYPE_END },
	};
	struct rte_flow_action actions[] = {
		{ .type = RTE_FLOW_ACTION_TYPE_QUEUE, .conf = &queue },
		{ .type = RTE_FLOW_ACTION_TYPE_END },
	};
	uint64_t inserted = counter(port, "nic_entries_inserted"), deleted = counter(port, "nic_entries_deleted");
	struct rte_flow_error error;
	struct threads before;
	char name[64];
	double start;
	uint32_t n;

	ipv4_mask.hdr.src_addr = 0xffffffff;
	rte_eth_dev_get_name_by_port(port, name);
	printf("port=%u name=%s rules=%u", port, name, rules);
	read_threads(&before);
	start = now();
	for (n = 0; n < rules; n++) {
		ipv4.hdr.src_addr = rte_cpu_to_be_32(n);
		flows[n] = rte_flow_create(port, &attr, items, actions, &error);
		if (flows[n] == NULL)
			fail(error.message ? error.message : "a rule is refused");
	}
	printf(" create=%.0f", now() - start);
	if (wait_for(port, "nic_entries_inserted", inserted + rules))
		printf(" inserted=%.0f", now() - start);
	print_threads("create", &before);
	read_threads(&before);
	start = now();
	for (n = 0; n < rules; n++)
		if (rte_flow_destroy(port, flows[n], &error) != 0)
			fail(error.message ? error.message : "a rule is not destroyed");
	printf(" destroy=%.0f", now() - start);
	if (wait_for(port, "nic_entries_deleted", deleted + rules))
		printf(" deleted=%.0f", now() - start);
	print_threads("destroy", &before);
	printf(" nic_entries_inserted=%lu nic_entries_deleted=%lu nic_updates_failed=%lu nic_completions=%lu nic_violations=%lu\n",
	       counter(port, "nic_entries_inserted"), counter(port, "nic_entries_deleted"), counter(port, "nic_updates_failed"),
	       counter(port, "nic_completions"), counter(port, "nic_violations"));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv), rounds;
	struct rte_flow **flows;
	uint32_t rules;
	uint16_t port;

	if (used < 0 || argc - used != 3)
		fail("usage: rate EAL-ARGUMENTS -- RULES ROUNDS");
	rules = strtoul(argv[used + 1], NULL, 10);
	rounds = atoi(argv[used + 2]);
	flows = calloc(rules ? rules : 1, sizeof(*flows));
	if (flows == NULL)
		fail("no memory");
	RTE_ETH_FOREACH_DEV(port)
		start_port(port);
	while (rounds-- > 0)
		RTE_ETH_FOREACH_DEV(port)
			one_round(port, rules, flows);
	RTE_ETH_FOREACH_DEV(port) {
		rte_eth_dev_stop(port);
		rte_eth_dev_close(port);
	}
	free(flows);
	return rte_eal_cleanup();
}
