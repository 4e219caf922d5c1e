// SPDX-License-Identifier: GPL-2.0
/* Packets that are received: taken from the ring of a tun or tap, or from the queue of a packet socket. */
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/if_vlan.h>
#include <linux/netdevice.h>
#include <linux/ptr_ring.h>
#include <linux/skb_array.h>
#include <linux/slab.h>
#include <linux/unaligned.h>
#include <net/sock.h>
#include <net/xdp.h>

#include "shim.h"
#include "tap.h"

/*
 * A packet of up to so many bytes, with its header, is copied twice: out of the socket into
 * memory of ours, and from there into the buffers. That is one access to memory of user space where the
 * socket makes one for each part of a packet, and ours two besides.
 */
#define IOCM_COPYBREAK 256

/*
 * Packets that were taken from the ring of a tun or tap and not yet received. One that the tap is not
 * asked for stays among them until it has arrived. One that it is asked for is kept until then, so that it can
 * be received again: as a copy if it is short, else by a reference to it. Longer frames that were redirected to
 * the tap cannot be kept.
 */
struct iocm_entries {
	struct ptr_ring *ring;
	unsigned int head;
	unsigned int tail;
	struct sk_buff *kept;
	/* The length that was told of the next packet, without any header. */
	unsigned int peeked;
	/* Bytes of @copy, which has the next packet then, or 0. */
	unsigned int copied;
	/* Kinds of headers, of @known_len bytes, that the socket was seen to make as this module does. */
	unsigned int known;
	unsigned int known_len;
	/* The interface that counts packets, or NOT_COUNTED, or 0 if it is not known. */
	int ifindex;
	/* The same to compare with, and not to be followed: nobody keeps it. */
	const struct net_device *interface;
	/* Packets that were received without asking the socket, and their bytes, until they are counted. */
	unsigned int packets;
	unsigned int bytes;
	void *entries[IOCM_BATCH];
	u8 copy[IOCM_COPYBREAK] __aligned(sizeof(u64));
};

/* Macvtap and ipvtap do not count what is received from them. */
#define NOT_COUNTED (-1)

/* Kinds of headers: those with numbers of more than a byte may be in another byte order. */
#define HEADER_PLAIN BIT(0)
#define HEADER_WITH_NUMBERS BIT(1)

struct iocm_entries *iocm_entries_alloc(void)
{
	return kzalloc(sizeof(struct iocm_entries), GFP_KERNEL);
}

/* Nothing is attached. */
void iocm_entries_free(struct iocm_entries *entries)
{
	kfree(entries);
}

/*
 * Finds the interface of a tun or tap, by its name. If it was moved to another namespace there is none, or
 * another one that no packet will be from.
 */
static void find_interface(struct iocm_entries *entries, struct socket *sock, const char *name)
{
	rcu_read_lock();
	entries->interface = dev_get_by_name_rcu(sock_net(sock->sk), name);
	entries->ifindex = entries->interface ? entries->interface->ifindex : 0;
	rcu_read_unlock();
}

/*
 * Receives from @sock from now on, the interface of which has this @name. A packet socket has no ring: its packets
 * are received from its queue one by one.
 */
void iocm_entries_attach(struct iocm_entries *entries, struct socket *sock, const char *name)
{
	struct ptr_ring *ring = tun_get_tx_ring(sock->file);

	if (!IS_ERR(ring)) {
		find_interface(entries, sock, name);
	} else {
		ring = tap_get_ptr_ring(sock->file);
		entries->ifindex = NOT_COUNTED;
	}
	entries->ring = IS_ERR(ring) ? NULL : ring;
	entries->known = 0;
}

/* Has the interface count what was received without asking the socket, as the socket does. */
void iocm_entries_account(struct iocm_entries *entries, struct socket *sock)
{
	struct net_device *dev;

	if (entries->packets && entries->ifindex != NOT_COUNTED) {
		rcu_read_lock();
		dev = dev_get_by_index_rcu(sock_net(sock->sk), entries->ifindex);
		if (dev && dev == entries->interface &&
		    dev->pcpu_stat_type == NETDEV_PCPU_STAT_TSTATS) {
			preempt_disable();
			dev_sw_netstats_tx_add(dev, entries->packets, entries->bytes);
			preempt_enable();
		} else {
			/* It is gone, or in another namespace. The socket knows. */
			entries->ifindex = 0;
			entries->known = 0;
		}
		rcu_read_unlock();
	}
	entries->packets = 0;
	entries->bytes = 0;
}

/* The packet of which there is only a copy, or NULL if there is no memory for it or its header is wrong. */
static struct sk_buff *packet_of_copy(const struct iocm_entries *entries)
{
	const struct virtio_net_hdr *header = (const struct virtio_net_hdr *)entries->copy;
	unsigned int header_len = entries->copied - entries->peeked;
	struct sk_buff *skb = alloc_skb(entries->peeked, GFP_KERNEL | __GFP_NOWARN);

	if (!skb)
		return NULL;
	skb_put_data(skb, entries->copy + header_len, entries->peeked);
	if (header_len < sizeof(*header))
		return skb;
	if (header->flags & VIRTIO_NET_HDR_F_DATA_VALID)
		skb->ip_summed = CHECKSUM_UNNECESSARY;
	if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		unsigned int start = get_unaligned_le16(&header->csum_start);
		unsigned int offset = get_unaligned_le16(&header->csum_offset);

		/* A tap may have headers of the other byte order. The kernel would print that. */
		if (start + offset + sizeof(__sum16) > entries->peeked ||
		    !skb_partial_csum_set(skb, start, offset)) {
			kfree_skb(skb);
			return NULL;
		}
	}
	return skb;
}

/*
 * Makes the next packet one that the socket can receive again, which counts it twice then. Returns false
 * if it is lost.
 */
bool iocm_entries_restore(struct iocm_entries *entries)
{
	struct sk_buff *skb;

	if (!entries->copied)
		return true;
	skb = packet_of_copy(entries);
	if (skb)
		entries->entries[--entries->head] = skb;
	entries->copied = 0;
	return skb;
}

/* Gives what was taken and has not arrived back to the ring, for the next to attach. */
void iocm_entries_detach(struct iocm_entries *entries)
{
	iocm_entries_restore(entries);
	if (entries->ring && entries->head != entries->tail)
		ptr_ring_unconsume(entries->ring, entries->entries + entries->head,
				   entries->tail - entries->head, tun_ptr_free);
	entries->head = 0;
	entries->tail = 0;
	entries->ring = NULL;
}

static size_t entry_len(void *entry)
{
	if (tun_is_xdp_frame(entry))
		return ((struct xdp_frame *)tun_ptr_to_xdp(entry))->len;
	return __skb_array_len_with_tag(entry);
}

static noinline size_t peek_queue(struct sk_buff_head *queue)
{
	struct sk_buff *skb;
	unsigned long flags;
	size_t len = 0;

	spin_lock_irqsave(&queue->lock, flags);
	skb = skb_peek(queue);
	if (skb)
		len = skb->len + (skb_vlan_tag_present(skb) ? VLAN_HLEN : 0);
	spin_unlock_irqrestore(&queue->lock, flags);
	return len;
}

/* Takes packets from the ring; returns whether there were any. */
static noinline bool refill(struct iocm_entries *entries)
{
	entries->head = 0;
	entries->tail = ptr_ring_consume_batched(entries->ring, entries->entries, IOCM_BATCH);
	return entries->tail;
}

/* The length of the next packet without any header, or 0 when there is none. */
size_t iocm_entries_peek(struct iocm_entries *entries, struct socket *sock)
{
	if (unlikely(!entries->ring))
		return peek_queue(&sock->sk->sk_receive_queue);
	if (unlikely(entries->copied))
		return entries->peeked;
	if (unlikely(entries->head == entries->tail) && !refill(entries))
		return 0;
	entries->peeked = entry_len(entries->entries[entries->head]);
	return entries->peeked;
}

/* Whether a packet waits. Only the receiver itself may ask. */
bool iocm_entries_ready(struct iocm_entries *entries, struct socket *sock)
{
	if (entries->ring)
		return entries->copied || entries->head != entries->tail ||
		       !__ptr_ring_empty(entries->ring);
	return !skb_queue_empty_lockless(&sock->sk->sk_receive_queue);
}

/* The socket consumes the entry in @msg in every case, also when it returns an error. */
static __always_inline int receive(struct socket *sock, struct msghdr *msg, size_t len)
{
	return READ_ONCE(sock->ops)->recvmsg(sock, msg, len, MSG_DONTWAIT | MSG_TRUNC);
}

static int receive_next(struct iocm_entries *entries, struct socket *sock, struct msghdr *msg,
			size_t len)
{
	if (entries->ring) {
		if (entries->head == entries->tail)
			return -EAGAIN;
		msg->msg_control = entries->entries[entries->head++];
	}
	return receive(sock, msg, len);
}

bool iocm_entries_has_ring(const struct iocm_entries *entries)
{
	return entries->ring;
}

/* What was received last has arrived. */
void iocm_entries_complete(struct iocm_entries *entries)
{
	if (entries->kept)
		consume_skb(entries->kept);
	entries->kept = NULL;
	entries->copied = 0;
}

/* What was received last did not arrive, and is the next one again if it was kept. */
bool iocm_entries_take_back(struct iocm_entries *entries)
{
	if (entries->copied)
		return true;
	if (!entries->kept)
		return false;
	entries->entries[--entries->head] = entries->kept;
	entries->kept = NULL;
	return true;
}

/* Where the number of buffers is in the header that all drivers of today have. */
#define IOCM_BUFFERS_OFFSET offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers)

/* Says how many @buffers a packet fills. */
static int put_buffers(const struct iovec *segments, unsigned int count, u16 buffers)
{
	__le16 value = cpu_to_le16(buffers);

	if (likely(count && segments->iov_len >= IOCM_BUFFERS_OFFSET + sizeof(value)))
		return put_user(value, (__le16 __user *)(segments->iov_base + IOCM_BUFFERS_OFFSET));
	return iocm_copy_to_segments(segments, count, IOCM_BUFFERS_OFFSET, &value, sizeof(value));
}

/*
 * Makes the header of @skb as tun and tap do (drivers/net/tun_vnet.h), in @header of IOCM_HEADER_MAX bytes.
 * Returns of which kind it is, or 0 if only they can make it.
 */
static __always_inline unsigned int make_header(const struct sk_buff *skb, u8 *header)
{
	unsigned int kind = HEADER_PLAIN;

	memset(header, 0, IOCM_HEADER_MAX);
	if (unlikely(skb_vlan_tag_present(skb)))
		return 0;
	if (skb_is_gso(skb)) {
		if (skb_shinfo(skb)->gso_type & (SKB_GSO_UDP_TUNNEL | SKB_GSO_UDP_TUNNEL_CSUM))
			return 0;
		kind = HEADER_WITH_NUMBERS;
	}
	if (unlikely(virtio_net_hdr_from_skb(skb, (struct virtio_net_hdr *)header, true, true, 0)))
		return 0;
	return skb->ip_summed == CHECKSUM_PARTIAL ? HEADER_WITH_NUMBERS : kind;
}

/* A header that the socket is expected to make. */
struct expected {
	unsigned int kind;
	u8 header[IOCM_HEADER_MAX] __aligned(sizeof(u64));
};

/* Says what to expect of the next packet, which the socket may free, if that is of use. */
static void expect_header(const struct iocm_entries *entries, enum iocm_keep keep,
			  struct expected *expected)
{
	void *entry = entries->entries[entries->head];

	expected->kind = 0;
	if (keep == IOCM_KEEP_UNTIL_WRITTEN && entries->ifindex && !tun_is_xdp_frame(entry))
		expected->kind = make_header(entry, expected->header);
}

/*
 * Learns from a header of @len bytes that the socket made whether it makes those of its kind as this module
 * does: how long they are and in which byte order, and whether there are any, it tells to nobody but by
 * ioctls.
 */
static void learn_header(struct iocm_entries *entries, const struct expected *expected,
			 const u8 *header, size_t len)
{
	if (!expected->kind || len < sizeof(struct virtio_net_hdr) || len > IOCM_HEADER_MAX ||
	    memcmp(header, expected->header, len))
		return;
	if (entries->known_len != len)
		entries->known = 0;
	entries->known_len = len;
	entries->known |= expected->kind;
}

/* Copies the next packet of the socket, which is short, unless that was done before. */
static bool copy_packet(struct iocm_entries *entries, struct socket *sock, size_t len,
			enum iocm_keep keep)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT };
	struct kvec whole = { .iov_base = entries->copy, .iov_len = len };
	struct expected expected;

	if (unlikely(entries->copied))
		return true;

	expect_header(entries, keep, &expected);
	iov_iter_kvec(&msg.msg_iter, ITER_DEST, &whole, 1, len);
	if (unlikely(receive_next(entries, sock, &msg, len) != len))
		return false;
	learn_header(entries, &expected, entries->copy, len - entries->peeked);
	entries->copied = len;
	return true;
}

/*
 * Whether @len bytes of the first of @segments, from @skip bytes on, may be in another one as well, or are
 * not all there.
 */
static __always_inline bool overlaps(const struct iovec *segments, unsigned int count, size_t skip,
				     size_t len)
{
	void __user *start = segments->iov_base + skip;
	void __user *end = start + len;
	unsigned int i;

	if (segments->iov_len < skip + len)
		return true;
	for (i = 1; i < count; i++) {
		if (segments[i].iov_base < end && segments[i].iov_base + segments[i].iov_len > start)
			return true;
	}
	return false;
}

/* As iocm_entries_receive(), for a packet that is copied first. */
static noinline int receive_short(struct iocm_entries *entries, struct socket *sock,
				  const struct iovec *segments, unsigned int count, size_t skip,
				  size_t len, unsigned int buffers, enum iocm_keep keep)
{
	struct iovec whole;
	int err = -EIO;

	if (unlikely(!copy_packet(entries, sock, len, keep)))
		goto done;
	if (buffers)
		put_unaligned_le16(buffers, entries->copy + IOCM_BUFFERS_OFFSET);

	segments = join(segments, &count, skip + len, &whole);
	if (likely(segments->iov_len >= skip + len)) {
		err = copy_to_user(segments->iov_base + skip, entries->copy, len);
	} else {
		err = iocm_copy_to_segments(segments, count, skip, entries->copy, len);
		/* With vhost_net the number of buffers is what is written last. */
		if (!err && buffers && unlikely(overlaps(segments, count, IOCM_BUFFERS_OFFSET,
							 sizeof(__le16))))
			err = put_buffers(segments, count, buffers);
	}
	if (unlikely(err)) {
		if (keep != IOCM_KEEP_NOT)
			return -EFAULT;
		err = -EIO;
	} else if (keep == IOCM_KEEP_UNTIL_COMPLETED) {
		return 0;
	}
done:
	iocm_entries_complete(entries);
	return err;
}

/* Where the next byte goes. */
struct place {
	const struct iovec *segment;
	unsigned int left;
	size_t skip;
};

/* Copies @len bytes of @data to @place and moves it on. */
static bool write_piece(struct place *place, const void *data, size_t len)
{
	for (;;) {
		size_t now = min(place->segment->iov_len - place->skip, len);

		if (copy_to_user(place->segment->iov_base + place->skip, data, now))
			return false;
		place->skip += now;
		len -= now;
		if (likely(!len))
			return true;
		if (!--place->left)
			return false;
		data += now;
		place->segment++;
		place->skip = 0;
	}
}

/* Copies the pages of @skb to @place, whole pieces of them at once, where the socket copies page by page. */
static __always_inline bool write_pages(struct place *place, const struct sk_buff *skb)
{
	const struct skb_shared_info *shared;
	unsigned int i;

	if (!skb_is_nonlinear(skb))
		return true;
	shared = skb_shinfo(skb);
	for (i = 0; i < shared->nr_frags; i++) {
		const skb_frag_t *frag = &shared->frags[i];

		if (!write_piece(place, skb_frag_address(frag), skb_frag_size(frag)))
			return false;
	}
	return true;
}

/* Writes a header of @len bytes to @place, most of which have the length that drivers of today want. */
static bool write_header(void __user *place, const u8 *header, size_t len)
{
	if (unlikely(len != sizeof(struct virtio_net_hdr_mrg_rxbuf)))
		return !copy_to_user(place, header, len);
	if (!user_write_access_begin(place, len))
		return false;
	unsafe_put_user(get_unaligned((const u64 *)header), (u64 __user *)place, fault);
	unsafe_put_user(get_unaligned((const u32 *)(header + sizeof(u64))),
			(u32 __user *)(place + sizeof(u64)), fault);
	user_write_access_end();
	return true;

fault:
	user_write_access_end();
	return false;
}

/*
 * Writes the packet @skb to @place, with a header of @header_len bytes that lies at the start of
 * IOCM_COPYBREAK bytes. What lies before the packet's pages is written together with the header if there is
 * room for it behind that.
 */
static __always_inline bool write_with_header(struct place *place, const struct sk_buff *skb,
					      u8 *header, size_t header_len)
{
	unsigned int linear = skb_headlen(skb);

	if (header_len + linear <= IOCM_COPYBREAK) {
		memcpy(header + header_len, skb->data, linear);
		return write_piece(place, header, header_len + linear) && write_pages(place, skb);
	}
	if (!write_header(place->segment->iov_base + place->skip, header, header_len))
		return false;
	place->skip += header_len;
	return write_piece(place, skb->data, linear) && write_pages(place, skb);
}

/* Whether all of a packet lies in memory that is mapped. */
static __always_inline bool is_mapped(const struct sk_buff *skb)
{
	return !IS_ENABLED(CONFIG_HIGHMEM) &&
	       (!skb_is_nonlinear(skb) || (!skb_has_frag_list(skb) && skb_frags_readable(skb)));
}

/*
 * Whether the next packet, with a header of @header_len bytes, is copied by this module itself: one that
 * lies as it is in memory that is mapped. Its header is written last, so what lies at its place in the
 * buffers must not be written before.
 */
static __always_inline bool may_write(const struct iocm_entries *entries,
				      const struct iovec *segments, unsigned int count, size_t skip,
				      size_t header_len)
{
	const struct sk_buff *skb;

	if (entries->head == entries->tail || tun_is_xdp_frame(entries->entries[entries->head]))
		return false;
	skb = entries->entries[entries->head];
	return !skb_vlan_tag_present(skb) && is_mapped(skb) &&
	       header_len >= sizeof(struct virtio_net_hdr) && header_len <= IOCM_HEADER_MAX &&
	       !overlaps(segments, count, skip, header_len);
}

/* As iocm_entries_receive(), for a packet that is written by the socket. */
static noinline int receive_by_socket(struct iocm_entries *entries, struct socket *sock,
				      const struct iovec *segments, unsigned int count,
				      size_t skip, size_t len, unsigned int buffers, enum iocm_keep keep)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT };
	int received;

	if (keep != IOCM_KEEP_NOT) {
		/* A tap counts a packet that it could not write as received. */
		if (!iocm_probe_segments(segments, count, skip + len))
			return -EFAULT;
		if (entries->ring && entries->head != entries->tail &&
		    !tun_is_xdp_frame(entries->entries[entries->head]))
			entries->kept = skb_get(entries->entries[entries->head]);
	}

	init_iter(&msg.msg_iter, ITER_DEST, segments, count, skip, len);
	received = receive_next(entries, sock, &msg, len);
	if (likely(received == len)) {
		/* Tun and tap do not say when they could not write the packet itself. */
		if (likely(!iov_iter_count(&msg.msg_iter)) &&
		    (!buffers || likely(!put_buffers(segments, count, buffers)))) {
			if (keep == IOCM_KEEP_UNTIL_WRITTEN)
				iocm_entries_complete(entries);
			return 0;
		}
		received = -EFAULT;
	}
	if (received == -EFAULT && iocm_entries_take_back(entries))
		return -EFAULT;
	iocm_entries_complete(entries);
	return -EIO;
}

/*
 * As iocm_entries_receive(), for a packet that this module copies itself, with a header of @header_len
 * bytes that the socket makes. The socket is asked for that only when all the rest has arrived.
 */
static __always_inline int receive_written(struct iocm_entries *entries, struct socket *sock,
					   const struct iovec *segments, unsigned int count,
					   size_t skip, size_t len, size_t header_len,
					   unsigned int buffers, enum iocm_keep keep)
{
	struct place place = { segments, count, skip + header_len };
	struct sk_buff *skb = entries->entries[entries->head];
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT, .msg_control = skb };
	/* Not all kernels write what a long header has behind their own. */
	u8 header[IOCM_HEADER_MAX] = {};
	struct kvec whole = { .iov_base = header, .iov_len = header_len };
	struct expected expected;
	int err = -EIO;

	if (unlikely(!write_piece(&place, skb->data, skb_headlen(skb)) ||
		     !write_pages(&place, skb))) {
		if (keep != IOCM_KEEP_NOT)
			return -EFAULT;
		return receive_by_socket(entries, sock, segments, count, skip, len, buffers, keep);
	}

	if (likely(keep != IOCM_KEEP_NOT))
		skb_get(skb);
	expect_header(entries, keep, &expected);
	iov_iter_kvec(&msg.msg_iter, ITER_DEST, &whole, 1, header_len);
	if (likely(receive(sock, &msg, header_len) == len)) {
		learn_header(entries, &expected, header, header_len);
		if (buffers)
			put_unaligned_le16(buffers, header + IOCM_BUFFERS_OFFSET);
		if (likely(write_header(segments->iov_base + skip, header, header_len)))
			err = 0;
		else if (keep != IOCM_KEEP_NOT)
			return -EFAULT;
	}

	entries->head++;
	if (keep == IOCM_KEEP_UNTIL_COMPLETED && !err)
		entries->kept = skb;
	else if (likely(keep != IOCM_KEEP_NOT))
		consume_skb(skb);
	return err;
}

/* As iocm_entries_receive(), for a packet that is copied once. */
static noinline int receive_long(struct iocm_entries *entries, struct socket *sock,
				 const struct iovec *segments, unsigned int count, size_t skip,
				 size_t len, unsigned int buffers, enum iocm_keep keep)
{
	struct iovec whole;
	size_t header_len;

	if (unlikely(entries->copied) && !iocm_entries_restore(entries))
		return -EIO;
	segments = join(segments, &count, skip + len, &whole);
	header_len = len - entries->peeked;
	if (likely(may_write(entries, segments, count, skip, header_len)))
		return receive_written(entries, sock, segments, count, skip, len, header_len,
				       buffers, keep);
	return receive_by_socket(entries, sock, segments, count, skip, len, buffers, keep);
}

/*
 * Whether the next packet, of @len bytes with its header, is received by way of a copy: one that was copied with
 * another header is not, nor one that is still to be segmented, which could not be made anew from a copy.
 */
static bool may_copy(const struct iocm_entries *entries, size_t len)
{
	void *entry;

	if (unlikely(entries->copied))
		return entries->copied == len;
	/* A packet socket has no entries. */
	if (entries->head == entries->tail)
		return false;
	entry = entries->entries[entries->head];
	return tun_is_xdp_frame(entry) || !skb_is_gso(entry);
}

/*
 * Whether the next packet may be received without asking the socket, with a header of @header_len bytes: one
 * that lies as it is in memory that is mapped, and that nobody else has.
 */
static __always_inline bool may_take(const struct iocm_entries *entries, size_t header_len)
{
	const struct sk_buff *skb;

	if (!entries->known || entries->known_len != header_len || entries->copied ||
	    entries->head == entries->tail || tun_is_xdp_frame(entries->entries[entries->head]))
		return false;
	skb = entries->entries[entries->head];
	return (entries->ifindex == NOT_COUNTED || skb->dev == entries->interface) &&
	       !skb_shared(skb) && is_mapped(skb);
}

/*
 * As iocm_entries_receive(), without asking the socket, for a packet that may be taken. Returns 1 if the
 * socket has to be asked after all.
 */
static __always_inline int take(struct iocm_entries *entries, const struct iovec *segments,
				unsigned int count, size_t skip, size_t len, unsigned int buffers)
{
	struct sk_buff *skb = entries->entries[entries->head];
	size_t header_len = len - entries->peeked;
	struct place place = { .skip = skip };
	struct iovec whole;

	if (unlikely(!(make_header(skb, entries->copy) & entries->known)))
		return 1;
	if (buffers)
		put_unaligned_le16(buffers, entries->copy + IOCM_BUFFERS_OFFSET);

	segments = join(segments, &count, skip + len, &whole);
	if (unlikely(overlaps(segments, count, skip, header_len)))
		return 1;
	place.segment = segments;
	place.left = count;
	if (unlikely(!write_with_header(&place, skb, entries->copy, header_len)))
		return -EFAULT;

	entries->packets++;
	entries->bytes += skb->len;
	entries->head++;
	consume_skb(skb);
	return 0;
}

/*
 * Receives the packet that was peeked at into @segments, from @skip bytes on. @len is its length with
 * the socket's header, into which the number of @buffers is written unless it is 0. Returns 0 when all of
 * it was written; -EFAULT when it was not, and the packet is the next one again; -EIO when it is lost.
 */
int iocm_entries_receive(struct iocm_entries *entries, struct socket *sock,
			 const struct iovec *segments, unsigned int count, size_t skip, size_t len,
			 unsigned int buffers, enum iocm_keep keep)
{
	int err;

	if (likely(keep == IOCM_KEEP_UNTIL_WRITTEN && may_take(entries, len - entries->peeked))) {
		err = take(entries, segments, count, skip, len, buffers);
		if (likely(err <= 0))
			return err;
	}
	if (len <= IOCM_COPYBREAK && may_copy(entries, len))
		return receive_short(entries, sock, segments, count, skip, len, buffers, keep);
	return receive_long(entries, sock, segments, count, skip, len, buffers, keep);
}

/* Drops the packet that was peeked at, truncating it to one byte of @segment. */
int iocm_entries_drop(struct iocm_entries *entries, struct socket *sock,
		      const struct iovec *segment)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT };

	if (entries->copied) {
		iocm_entries_complete(entries);
		return 0;
	}
	iov_iter_init(&msg.msg_iter, ITER_DEST, segment, 1, 1);
	return receive_next(entries, sock, &msg, 1);
}
