/* A DPDK driver that does nothing: it says yes to every rule. What a benchmark of rules costs without a NIC. */
#include <stdlib.h>
#include <rte_errno.h>
#include <rte_flow.h>
#include <rte_flow_driver.h>
#include <ethdev_driver.h>
#include <ethdev_vdev.h>
#include <bus_vdev_driver.h>

static struct rte_ether_addr address = { { 2, 0, 0, 0, 0, 1 } };

static int done(struct rte_eth_dev *dev)
{
	(void)dev;
	return 0;
}

static int closed(struct rte_eth_dev *dev)
{
	/* Not DPDK's to free. */
	dev->data->mac_addrs = NULL;
	return 0;
}

static int info(struct rte_eth_dev *dev, struct rte_eth_dev_info *out)
{
	(void)dev;
	out->max_rx_queues = out->max_tx_queues = 64;
	out->max_rx_pktlen = 9216;
	out->max_mac_addrs = 1;
	out->flow_type_rss_offloads = UINT64_MAX;
	return 0;
}

static int link_update(struct rte_eth_dev *dev, int wait)
{
	(void)wait;
	dev->data->dev_link.link_status = RTE_ETH_LINK_UP;
	return 0;
}

static int stats(struct rte_eth_dev *dev, struct rte_eth_stats *out)
{
	(void)dev, (void)out;
	return 0;
}

static int rx_queue(struct rte_eth_dev *dev, uint16_t queue, uint16_t size, unsigned int socket,
		    const struct rte_eth_rxconf *conf, struct rte_mempool *pool)
{
	(void)size, (void)socket, (void)conf;
	dev->data->rx_queues[queue] = pool;
	return 0;
}

static int tx_queue(struct rte_eth_dev *dev, uint16_t queue, uint16_t size, unsigned int socket,
		    const struct rte_eth_txconf *conf)
{
	(void)size, (void)socket, (void)conf;
	dev->data->tx_queues[queue] = dev;
	return 0;
}

static uint16_t no_packets(void *queue, struct rte_mbuf **packets, uint16_t count)
{
	(void)queue, (void)packets, (void)count;
	return 0;
}

static struct rte_flow *create(struct rte_eth_dev *dev, const struct rte_flow_attr *attr, const struct rte_flow_item items[],
			       const struct rte_flow_action actions[], struct rte_flow_error *error)
{
	(void)attr, (void)items, (void)actions, (void)error;
	return (struct rte_flow *)dev;
}

static int destroy(struct rte_eth_dev *dev, struct rte_flow *flow, struct rte_flow_error *error)
{
	(void)dev, (void)flow, (void)error;
	return 0;
}

static int flush(struct rte_eth_dev *dev, struct rte_flow_error *error)
{
	(void)dev, (void)error;
	return 0;
}

static const struct rte_flow_ops flow_ops = { .create = create, .destroy = destroy, .flush = flush };

static int flow_ops_get(struct rte_eth_dev *dev, const struct rte_flow_ops **ops)
{
	(void)dev;
	*ops = &flow_ops;
	return 0;
}

static const struct eth_dev_ops ops = {
	.dev_configure = done,
	.dev_start = done,
	.dev_stop = done,
	.dev_close = closed,
	.dev_infos_get = info,
	.promiscuous_enable = done,
	.promiscuous_disable = done,
	.link_update = link_update,
	.stats_get = stats,
	.rx_queue_setup = rx_queue,
	.tx_queue_setup = tx_queue,
	.flow_ops_get = flow_ops_get,
};

static int probe(struct rte_vdev_device *vdev)
{
	struct rte_eth_dev *dev = rte_eth_vdev_allocate(vdev, 0);

	if (dev == NULL)
		return -ENOMEM;
	dev->data->mac_addrs = &address;
	dev->data->dev_flags |= RTE_ETH_DEV_FLOW_OPS_THREAD_SAFE;
	dev->dev_ops = &ops;
	dev->rx_pkt_burst = no_packets;
	dev->tx_pkt_burst = no_packets;
	rte_eth_dev_probing_finish(dev);
	return 0;
}

static int removed(struct rte_vdev_device *vdev)
{
	struct rte_eth_dev *dev = rte_eth_dev_allocated(rte_vdev_device_name(vdev));

	return dev == NULL ? 0 : closed(dev) + rte_eth_dev_release_port(dev);
}

static struct rte_vdev_driver driver = { .probe = probe, .remove = removed };
RTE_PMD_REGISTER_VDEV(net_noop, driver);
