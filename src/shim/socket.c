// SPDX-License-Identifier: GPL-2.0
/* The sockets that are backends: which ones, what they are called, and sending one packet. */
#include <linux/file.h>
#include <linux/if_packet.h>
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/netdevice.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <net/sock.h>

#include "shim.h"
#include "tap.h"

/*
 * The socket behind @fd: a raw packet socket, or the socket of a tun or tap file. The caller owns
 * the reference to its file. The descriptor is looked up once: a second look could find another
 * file (CVE-2023-1838).
 */
struct socket *iocm_socket_get(int fd)
{
	struct file *file = fget(fd);
	struct socket *sock;

	if (!file)
		return ERR_PTR(-ENOTSOCK);

	sock = sock_from_file(file);
	if (sock) {
		if (sock->sk->sk_type == SOCK_RAW && sock->sk->sk_family == AF_PACKET)
			return sock;
	} else {
		sock = tun_get_socket(file);
		if (!IS_ERR(sock))
			return sock;
		sock = tap_get_socket(file);
		if (!IS_ERR(sock))
			return sock;
	}
	fput(file);
	return ERR_PTR(-ENOTSOCK);
}

void iocm_socket_put(struct socket *sock)
{
	fput(sock->file);
}

static bool packet_name(struct socket *sock, char *name)
{
	struct sockaddr_storage address = {};
	const struct sockaddr_ll *packet = (const struct sockaddr_ll *)&address;
	struct net_device *dev;
	bool found = false;

	if (sock->ops->family != AF_PACKET ||
	    sock->ops->getname(sock, (struct sockaddr *)&address, 0) < 0)
		return false;

	rcu_read_lock();
	dev = dev_get_by_index_rcu(sock_net(sock->sk), packet->sll_ifindex);
	if (dev) {
		strscpy(name, dev->name, IFNAMSIZ);
		found = true;
	}
	rcu_read_unlock();
	return found;
}

/*
 * Writes the name of the interface behind @sock, now, to @name of @size bytes, at least IFNAMSIZ.
 * Tun tells the name of its interface to nobody but the readers of its fdinfo. A macvtap or ipvtap
 * file says nothing at all, but its node is called after the interface's index.
 */
void iocm_socket_name(struct socket *sock, char *name, size_t size)
{
	struct file *file = sock->file;
	char text[64] = "";
	struct seq_file fdinfo = { .buf = text, .size = sizeof(text) };
	char *begin, *end;

	name[0] = '\0';
	if (size < IFNAMSIZ || packet_name(sock, name))
		return;

	if (!IS_ERR(tun_get_socket(file)) && file->f_op->show_fdinfo) {
		file->f_op->show_fdinfo(&fdinfo, file);
		text[min(fdinfo.count, sizeof(text) - 1)] = '\0';
		begin = strstr(text, "iff:\t");
		if (!begin)
			return;
		begin += strlen("iff:\t");
		end = strchrnul(begin, '\n');
		*end = '\0';
		strscpy(name, begin, size);
		return;
	}
	strscpy(name, file->f_path.dentry->d_name.name, size);
}

/* Frames are sent in batches only when the send buffer has no limit, which batches ignore. */
bool iocm_socket_unlimited(struct socket *sock)
{
	return READ_ONCE(sock->sk->sk_sndbuf) == INT_MAX;
}

bool iocm_socket_writable(struct socket *sock)
{
	return vfs_poll(sock->file, NULL) & EPOLLOUT;
}

/*
 * Sends @len bytes of @segments, from @skip bytes on, as one packet. Returns what the socket says:
 * a negative errno, or the bytes that it took.
 */
int iocm_socket_send(struct socket *sock, const struct iovec *segments, unsigned int count,
		     size_t skip, size_t len, bool more)
{
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT | (more ? MSG_MORE : 0),
	};
	struct iovec whole;

	segments = join(segments, &count, skip + len, &whole);
	init_iter(&msg.msg_iter, ITER_SOURCE, segments, count, skip, len);
	return READ_ONCE(sock->ops)->sendmsg(sock, &msg, len);
}
