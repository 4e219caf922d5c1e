/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What socket.c, frames.c and entries.c share: all contact with tun, tap (macvtap, ipvtap) and packet
 * sockets. Their in-kernel interface has no promise of stability: 7.3 replaces the access to the rings of tun
 * and tap by wrappers.
 */
#ifndef VHOST_IOCM_TAP_H
#define VHOST_IOCM_TAP_H

#include <linux/cache.h>
#include <linux/uio.h>
#include <linux/virtio_net.h>

/* Bytes of the longest virtio header: that of packets in UDP tunnels. */
#define IOCM_HEADER_MAX sizeof(struct virtio_net_hdr_v1_hash_tunnel)
static_assert(L1_CACHE_BYTES >= IOCM_HEADER_MAX); /* NET_SKB_PAD is not less. */

/*
 * Describes the first @len bytes of @segments by @whole if they lie in one piece, as header and packet
 * of many drivers do, and the buffers of a driver that has one large piece of memory for them. Of one
 * segment the kernel copies with fewer detours than of many. Returns what to use.
 */
static inline const struct iovec *join(const struct iovec *segments, unsigned int *count,
				       size_t len, struct iovec *whole)
{
	const struct iovec *last = segments;
	unsigned int left = *count;
	size_t rest = len;

	for (; left > 1 && rest > last->iov_len; last++, left--) {
		rest -= last->iov_len;
		if (last[1].iov_base != last->iov_base + last->iov_len)
			return segments;
	}
	if (!left || rest > last->iov_len)
		return segments;
	whole->iov_base = segments->iov_base;
	whole->iov_len = len;
	*count = 1;
	return whole;
}

/* Begins with @len bytes of @segments, from @skip bytes on. */
static inline void init_iter(struct iov_iter *iter, unsigned int direction,
			     const struct iovec *segments, unsigned int count, size_t skip,
			     size_t len)
{
	if (count == 1 && skip + len <= segments->iov_len) {
		iov_iter_ubuf(iter, direction, segments->iov_base + skip, len);
		return;
	}
	iov_iter_init(iter, direction, segments, count, skip + len);
	if (skip)
		iov_iter_advance(iter, skip);
}

#endif
