// SPDX-License-Identifier: GPL-2.0
/*
 * User memory of the current address space, where the kernel offers macros only.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include <asm/futex.h>

#include "shim.h"

bool iocm_access_ok(u64 addr, u64 len)
{
	return addr == (unsigned long)addr && len == (unsigned long)len &&
	       access_ok((void __user *)(unsigned long)addr, len);
}

/* The 16 bits at @addr, or -EFAULT. */
int iocm_get_u16(u64 addr)
{
	const u16 __user *from = (const u16 __user *)(unsigned long)addr;
	u16 value;

	if (!user_read_access_begin(from, sizeof(*from)))
		return -EFAULT;
	unsafe_get_user(value, from, fault);
	user_read_access_end();
	return value;

fault:
	user_read_access_end();
	return -EFAULT;
}

int iocm_put_u16(u64 addr, u16 value)
{
	return put_user(value, (u16 __user *)(unsigned long)addr);
}

/* Reads the 16 bytes at @addr: two loads, where copy_from_user() has a call for any length. */
int iocm_get_descriptor(u64 addr, u64 *words)
{
	const u64 __user *from = (const u64 __user *)(unsigned long)addr;

	if (!user_read_access_begin(from, 2 * sizeof(*from)))
		return -EFAULT;
	unsafe_get_user(words[0], from, fault);
	unsafe_get_user(words[1], from + 1, fault);
	user_read_access_end();
	return 0;

fault:
	user_read_access_end();
	return -EFAULT;
}

/* Copies @len bytes of @data into @segments, from @skip bytes on. */
int iocm_copy_to_segments(const struct iovec *segments, unsigned int count, size_t skip,
			  const void *data, size_t len)
{
	struct iov_iter to;

	iov_iter_init(&to, ITER_DEST, segments, count, skip + len);
	if (skip)
		iov_iter_advance(&to, skip);
	return copy_to_iter(data, len, &to) == len ? 0 : -EFAULT;
}

/*
 * Whether the first @len bytes of @segments can be written without waiting, by writing the first one
 * that lies in each page. It is a device's to write, and what it was is lost.
 */
bool iocm_probe_segments(const struct iovec *segments, unsigned int count, size_t len)
{
	for (; count && len; segments++, count--) {
		unsigned long addr = (unsigned long)segments->iov_base;
		size_t now = min(segments->iov_len, len);
		unsigned long end = addr + now;

		len -= now;
		if (!user_write_access_begin((void __user *)addr, now))
			return false;
		while (addr < end) {
			unsafe_put_user(0, (u8 __user *)addr, fault);
			addr = (addr & PAGE_MASK) + PAGE_SIZE;
		}
		user_write_access_end();
	}
	return !len;

fault:
	user_write_access_end();
	return false;
}

/* Whether the byte at @addr can be written without waiting. It stays as it was: it is a device's to write. */
bool iocm_probe_byte(u64 addr)
{
	u8 __user *place = (u8 __user *)(unsigned long)addr;
	u8 byte;

	return !get_user(byte, place) && !put_user(byte, place);
}

/* A word that others change so often while bits are being set in it is left to who may wait. */
#define SET_BITS_TRIES 1000

/*
 * Sets @bits of the word at the user address @addr, a multiple of 4, which user space and other
 * CPUs change at the same time. Returns -EFAULT or -EAGAIN if it did not.
 */
int iocm_set_user_bits(u64 addr, u32 bits)
{
	u32 __user *word = (u32 __user *)(unsigned long)addr;
	__le32 mask = cpu_to_le32(bits);
	unsigned int tries;
	u32 old, seen;
	int err;

	if (!iocm_access_ok(addr, sizeof(*word)) || get_user(old, word))
		return -EFAULT;

	for (tries = 0; tries < SET_BITS_TRIES; tries++) {
		/* Most pages are written many times between two looks of user space. */
		if (!(~old & (__force u32)mask))
			return 0;
		err = futex_atomic_cmpxchg_inatomic(&seen, word, old, old | (__force u32)mask);
		/* It need not wait for a page that may not be written yet, where that is allowed. */
		if (err == -EFAULT && !pagefault_disabled() &&
		    !fault_in_safe_writeable((const char __user *)word, sizeof(*word)))
			continue;
		if (err && err != -EAGAIN)
			return err;
		if (!err && seen == old)
			return 0;
		if (!err)
			old = seen;
	}
	return -EAGAIN;
}

void iocm_faults_disable(void)
{
	pagefault_disable();
}

void iocm_faults_enable(void)
{
	pagefault_enable();
}

/*
 * The page at the user address @addr, if it is resident. The caller owns a reference to it.
 *
 * Some architectures (User Mode Linux) have no way to look it up without a lock of the address
 * space. There the page is missed as well while somebody changes the mappings.
 */
struct page *iocm_page_get(u64 addr)
{
	struct mm_struct *mm = current->mm;
	struct page *page;
	long count;

	addr &= PAGE_MASK;
	if (IS_ENABLED(CONFIG_HAVE_GUP_FAST)) {
		count = get_user_pages_fast_only(addr, 1, 0, &page);
	} else {
		if (!mmap_read_trylock(mm))
			return NULL;
		count = get_user_pages(addr, 1, FOLL_NOFAULT, &page);
		mmap_read_unlock(mm);
	}
	return count == 1 ? page : NULL;
}

void iocm_page_put(struct page *page)
{
	put_page(page);
}

/* Reads the field at @offset, which is even, of @page, which user space may write meanwhile. */
u16 iocm_page_read_u16(struct page *page, unsigned int offset)
{
	void *mapped = kmap_local_page(page);
	u16 value = le16_to_cpu(READ_ONCE(*(__le16 *)(mapped + offset)));

	kunmap_local(mapped);
	return value;
}
