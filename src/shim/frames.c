// SPDX-License-Identifier: GPL-2.0
/* Batches of frames that tun and tap send. */
#include <linux/if_tun.h>
#include <linux/page_frag_cache.h>
#include <linux/slab.h>
#include <net/sock.h>
#include <net/xdp.h>

#include "shim.h"
#include "tap.h"

/* Frames that are longer than a page share a piece of memory: three of 64 KiB fit into one. */
#define IOCM_PIECE_SIZE SZ_256K

/* The longest frame: a packet of 64 KiB, with room for headers and struct skb_shared_info. */
#define IOCM_FRAME_MAX (SZ_64K + SZ_2K)

/*
 * A batch of frames to send. What lies in the page fragment of a frame is agreed with tun and tap:
 * the virtio header at its start, the packet after the padding, struct skb_shared_info behind it.
 */
struct iocm_frames {
	struct page_frag_cache cache;
	/* For frames that are longer than a page, or NULL; so many bytes of it are given out. */
	struct page *piece;
	unsigned int given;
	unsigned int count;
	struct xdp_buff frames[IOCM_BATCH];
};

struct iocm_frames *iocm_frames_alloc(void)
{
	struct iocm_frames *frames = kzalloc(sizeof(*frames), GFP_KERNEL);

	if (frames)
		page_frag_cache_init(&frames->cache);
	return frames;
}

/* The batch is empty: whoever adds frames sends them before the slice ends. */
void iocm_frames_free(struct iocm_frames *frames)
{
	page_frag_cache_drain(&frames->cache);
	if (frames->piece)
		put_page(frames->piece);
	kfree(frames);
}

/* Copies @len bytes of @segments, from @skip bytes on, of which most packets need one. */
static bool copy_segments(void *to, const struct iovec *segments, unsigned int count, size_t skip,
			  size_t len)
{
	if (likely(count && skip + len <= segments->iov_len))
		return !copy_from_user(to, segments->iov_base + skip, len);

	for (; count && len; segments++, count--) {
		size_t left = segments->iov_len, now;

		if (skip >= left) {
			skip -= left;
			continue;
		}
		now = min(left - skip, len);
		if (copy_from_user(to, segments->iov_base + skip, now))
			return false;
		skip = 0;
		to += now;
		len -= now;
	}
	return !len;
}

/*
 * Memory for a frame of @size bytes that is longer than a page, or NULL. Tun and tap would take pages
 * for each such packet and give them back to the kernel; this is used again and again as long as nobody
 * keeps a packet for longer than it takes to send the batch.
 */
static noinline void *alloc_long_frame(struct iocm_frames *frames, unsigned int size)
{
	if (frames->piece && frames->given + size > IOCM_PIECE_SIZE) {
		/*
		 * With our reference alone nobody reads it any more: who gave another one up by a full
		 * atomic operation had read before, and what is written next depends on this count.
		 */
		if (page_ref_count(frames->piece) != 1) {
			put_page(frames->piece);
			frames->piece = NULL;
		}
		frames->given = 0;
	}
	if (!frames->piece) {
		/* Nobody reclaims or moves memory for a piece: there is another way without. */
		frames->piece = alloc_pages((GFP_KERNEL & ~__GFP_RECLAIM) | __GFP_COMP |
					    __GFP_NOWARN, get_order(IOCM_PIECE_SIZE));
		if (!frames->piece)
			return NULL;
	}
	get_page(frames->piece);
	frames->given += size;
	return page_address(frames->piece) + frames->given - size;
}

/*
 * Adds a packet of @len bytes to the batch, its first @header_len being the virtio header for the
 * socket. Returns 0, or 1 if the batch is to be sent before the next one is added, and in @header the copy
 * of the header at the start of the frame, where tun and tap look at it; or -ENOSPC for a packet that has to
 * be sent alone, -ENOMEM, -EFAULT. The caller sends before there are more than IOCM_BATCH.
 */
int iocm_frames_add(struct iocm_frames *frames, struct socket *sock,
		    const struct iovec *segments, unsigned int count, size_t skip, size_t len,
		    size_t header_len, void **header)
{
	unsigned int headroom = sock_flag(sock->sk, SOCK_XDP) ? XDP_PACKET_HEADROOM : 0;
	unsigned int tail = SKB_DATA_ALIGN(sizeof(struct skb_shared_info));
	unsigned int pad = SKB_DATA_ALIGN(NET_IP_ALIGN + NET_SKB_PAD + headroom + header_len);
	struct xdp_buff *frame = &frames->frames[frames->count];
	struct iovec whole;
	unsigned int size;
	void *buffer;

	if (len > IOCM_FRAME_MAX || SKB_DATA_ALIGN(len + pad) + tail > IOCM_FRAME_MAX)
		return -ENOSPC;

	size = SKB_DATA_ALIGN(len + pad) + tail;
	if (size > PAGE_SIZE) {
		buffer = alloc_long_frame(frames, size);
		if (!buffer)
			return -ENOSPC;
	} else {
		buffer = page_frag_alloc_align(&frames->cache, size, GFP_KERNEL | __GFP_NOWARN,
					       SMP_CACHE_BYTES);
		if (unlikely(!buffer))
			return -ENOMEM;
	}

	segments = join(segments, &count, skip + len, &whole);
	if (unlikely(!copy_segments(buffer + pad - header_len, segments, count, skip, len))) {
		page_frag_free(buffer);
		return -EFAULT;
	}

	/*
	 * Tun reads a header at the start of the buffer even where the guest sent none. The longest
	 * header always fits between start and packet, and a constant length needs no call.
	 */
	if (header_len)
		memcpy(buffer, buffer + pad - header_len, IOCM_HEADER_MAX);
	else
		memset(buffer, 0, pad);

	xdp_init_buff(frame, size, NULL);
	xdp_prepare_buff(frame, buffer, pad, len - header_len, true);
	frames->count++;
	*header = buffer;
	/* When the batch is sent, the piece can be used again if nobody keeps a part of it. */
	return size > PAGE_SIZE && frames->given + IOCM_FRAME_MAX > IOCM_PIECE_SIZE;
}

/* Takes the frame that was added last out of the batch. */
void iocm_frames_drop_last(struct iocm_frames *frames)
{
	frames->count--;
	page_frag_free(frames->frames[frames->count].data);
}

/*
 * Sends the batch, which is empty afterwards. The socket owns the pages unless it refuses the
 * whole batch; then they are freed here, and all frames are lost.
 */
int iocm_frames_send(struct iocm_frames *frames, struct socket *sock)
{
	struct tun_msg_ctl control = {
		.type = TUN_MSG_PTR,
		.num = frames->count,
		.ptr = frames->frames,
	};
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	unsigned int i;
	int err;

	err = READ_ONCE(sock->ops)->sendmsg(sock, &msg, 0);
	if (unlikely(err < 0)) {
		for (i = 0; i < frames->count; i++)
			page_frag_free(frames->frames[i].data);
	}
	frames->count = 0;
	return min(err, 0);
}
