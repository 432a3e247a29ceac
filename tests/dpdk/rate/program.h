/* What the programs of this folder share: how they fail, and counters by name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <rte_ethdev.h>

#define XSTATS 256

static inline void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

/* A counter of the port by its name; 0 if it has none of that name. */
static inline uint64_t counter(uint16_t port, const char *name)
{
	static struct rte_eth_xstat_name names[XSTATS];
	static struct rte_eth_xstat values[XSTATS];
	int count = rte_eth_xstats_get_names(port, names, XSTATS), n;

	if (count < 0 || count > XSTATS || rte_eth_xstats_get(port, values, XSTATS) != count)
		fail("no counters");
	for (n = 0; n < count; n++)
		if (strcmp(names[n].name, name) == 0)
			return values[n].value;
	return 0;
}
