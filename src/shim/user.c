// SPDX-License-Identifier: GPL-2.0
/*
 * User memory of the current address space, where the kernel offers macros only.
 */
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "shim.h"

bool iocm_access_ok(u64 addr, u64 len)
{
	return addr == (unsigned long)addr && len == (unsigned long)len &&
	       access_ok((void __user *)(unsigned long)addr, len);
}

int iocm_get_u16(u64 addr, u16 *value)
{
	return get_user(*value, (u16 __user *)(unsigned long)addr);
}

int iocm_put_u16(u64 addr, u16 value)
{
	return put_user(value, (u16 __user *)(unsigned long)addr);
}

/* Copies @len bytes of @data into @segments, from @skip bytes on. */
int iocm_copy_to_segments(const struct iovec *segments, unsigned int count, size_t skip,
			  const void *data, size_t len)
{
	struct iov_iter to;

	iov_iter_init(&to, ITER_DEST, segments, count, skip + len);
	iov_iter_advance(&to, skip);
	return copy_to_iter(data, len, &to) == len ? 0 : -EFAULT;
}
