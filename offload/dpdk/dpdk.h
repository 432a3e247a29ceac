/* What the driver uses of DPDK, for bindgen: of the public headers and of those that only drivers may use. */
#include <rte_config.h>
#include <rte_version.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_flow.h>
#include <rte_flow_driver.h>
#include <ethdev_driver.h>
#include <ethdev_vdev.h>
#include <bus_vdev_driver.h>

/* Fields whose place in a structure is not the same in every DPDK are reached through C, which knows their names. */

/* A fresh buffer's room for data. */
static inline void *flowlift_mbuf_room(struct rte_mbuf *m, uint16_t *room)
{
	*room = rte_pktmbuf_tailroom(m);
	return rte_pktmbuf_mtod(m, void *);
}

/* Hangs a filled buffer behind `last`, the last one of `head`'s packet. */
static inline void flowlift_mbuf_chain(struct rte_mbuf *head, struct rte_mbuf *last, struct rte_mbuf *m, uint16_t len)
{
	m->data_len = len;
	if (head == m) {
		m->pkt_len = len;
		return;
	}
	last->next = m;
	head->nb_segs++;
	head->pkt_len += len;
}

/* Says where a packet came in, whether a rule flagged it, and what mark it bears. */
static inline void flowlift_mbuf_received(struct rte_mbuf *m, uint16_t port, bool flagged, bool marked, uint32_t mark)
{
	m->port = port;
	if (flagged)
		m->ol_flags |= RTE_MBUF_F_RX_FDIR;
	if (marked) {
		m->ol_flags |= RTE_MBUF_F_RX_FDIR_ID;
		m->hash.fdir.hi = mark;
	}
}

/* The bytes of one segment, and the next one. */
static inline const void *flowlift_mbuf_segment(const struct rte_mbuf *m, uint16_t *len, struct rte_mbuf **next)
{
	*len = m->data_len;
	*next = m->next;
	return rte_pktmbuf_mtod(m, const void *);
}

static inline uint32_t flowlift_mbuf_len(const struct rte_mbuf *m)
{
	return m->pkt_len;
}

/* Bits that bindgen has no name for. */
enum flowlift_device_flags {
	FLOWLIFT_DEVICE_FLAGS =
		RTE_ETH_DEV_FLOW_OPS_THREAD_SAFE | RTE_ETH_DEV_INTR_LSC | RTE_ETH_DEV_INTR_RMV | RTE_ETH_DEV_AUTOFILL_QUEUE_XSTATS,
};

static inline uint64_t flowlift_rss_types(void)
{
	return RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP | RTE_ETH_RSS_SCTP;
}

static inline uint64_t flowlift_rx_offloads(void)
{
	return RTE_ETH_RX_OFFLOAD_SCATTER | RTE_ETH_RX_OFFLOAD_RSS_HASH;
}

static inline uint64_t flowlift_tx_offloads(void)
{
	return RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
}

/* Says whether the link is up; true if that is news. FL1 does not say a speed. */
static inline bool flowlift_set_link(struct rte_eth_dev *dev, bool up)
{
	struct rte_eth_link link = {
		.link_speed = up ? RTE_ETH_SPEED_NUM_UNKNOWN : RTE_ETH_SPEED_NUM_NONE,
		.link_duplex = RTE_ETH_LINK_FULL_DUPLEX,
		.link_autoneg = RTE_ETH_LINK_AUTONEG,
		.link_status = up ? RTE_ETH_LINK_UP : RTE_ETH_LINK_DOWN,
	};
	return rte_eth_linkstatus_set(dev, &link) == 0;
}

static inline const char *flowlift_vdev_args(struct rte_vdev_device *dev)
{
	return rte_vdev_device_args(dev);
}
