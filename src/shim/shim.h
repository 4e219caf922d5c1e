/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The C that has to be C: static inlines, macros, and tables that macros build. Everything here
 * is called from src/kern only, through declarations that bindgen makes of this file.
 */
#ifndef VHOST_IOCM_SHIM_H
#define VHOST_IOCM_SHIM_H

#include <linux/net.h>
#include <linux/types.h>
#include <linux/uio.h>

struct cpumask;
struct kobject;
struct page;
struct task_struct;

/* Frames that one call hands to a tap, and entries taken from a tap's ring at once. */
#define IOCM_BATCH 64

/* socket.c: sockets that are backends */

struct socket *iocm_socket_get(int fd);
void iocm_socket_put(struct socket *sock);
void iocm_socket_name(struct socket *sock, char *name, size_t size);
bool iocm_socket_unlimited(struct socket *sock);
bool iocm_socket_writable(struct socket *sock);
int iocm_socket_send(struct socket *sock, const struct iovec *segments, unsigned int count,
		     size_t skip, size_t len, bool more);

/* frames.c: batches of frames to send */

struct iocm_frames;

struct iocm_frames *iocm_frames_alloc(void);
void iocm_frames_free(struct iocm_frames *frames);
int iocm_frames_add(struct iocm_frames *frames, struct socket *sock,
		    const struct iovec *segments, unsigned int count, size_t skip, size_t len,
		    size_t header_len, void **header);
void iocm_frames_drop_last(struct iocm_frames *frames);
int iocm_frames_send(struct iocm_frames *frames, struct socket *sock);

/* entries.c: packets that are received */

struct iocm_entries;

/* How long a packet is kept that is being received, so that it can be received again. */
enum iocm_keep {
	/* Not at all. */
	IOCM_KEEP_NOT,
	/* Until it was written. */
	IOCM_KEEP_UNTIL_WRITTEN,
	/* Until iocm_entries_complete() or iocm_entries_take_back(). */
	IOCM_KEEP_UNTIL_COMPLETED,
};

struct iocm_entries *iocm_entries_alloc(void);
void iocm_entries_free(struct iocm_entries *entries);
void iocm_entries_attach(struct iocm_entries *entries, struct socket *sock, const char *name);
void iocm_entries_detach(struct iocm_entries *entries);
void iocm_entries_account(struct iocm_entries *entries, struct socket *sock);
size_t iocm_entries_peek(struct iocm_entries *entries, struct socket *sock);
bool iocm_entries_ready(struct iocm_entries *entries, struct socket *sock);
bool iocm_entries_has_ring(const struct iocm_entries *entries);
bool iocm_entries_restore(struct iocm_entries *entries);
void iocm_entries_complete(struct iocm_entries *entries);
bool iocm_entries_take_back(struct iocm_entries *entries);
int iocm_entries_receive(struct iocm_entries *entries, struct socket *sock,
			 const struct iovec *segments, unsigned int count, size_t skip, size_t len,
			 unsigned int buffers, enum iocm_keep keep);
int iocm_entries_drop(struct iocm_entries *entries, struct socket *sock,
		      const struct iovec *segment);

/* user.c: user memory */

bool iocm_access_ok(u64 addr, u64 len);
int iocm_get_descriptor(u64 addr, u64 *words);
int iocm_get_u16(u64 addr);
int iocm_put_u16(u64 addr, u16 value);
int iocm_copy_to_segments(const struct iovec *segments, unsigned int count, size_t skip,
			  const void *data, size_t len);
bool iocm_probe_byte(u64 addr);
bool iocm_probe_segments(const struct iovec *segments, unsigned int count, size_t len);
int iocm_set_user_bits(u64 addr, u32 bits);
void iocm_faults_disable(void);
void iocm_faults_enable(void);
struct page *iocm_page_get(u64 addr);
void iocm_page_put(struct page *page);
u16 iocm_page_read_u16(struct page *page, unsigned int offset);

/* task.c: threads and processors */

/* Soft interrupts of a CPU since it was booted, as its current thread sees them. */
struct iocm_softirqs {
	/* How often the thread was switched out. */
	u64 switches;
	/* Nanoseconds. */
	u64 time;
	unsigned int count;
};

void iocm_allow_affinity(void);
int iocm_task_cpu(struct task_struct *task);
size_t iocm_task_cpus(struct task_struct *task, char *text, size_t size);
int iocm_join_cgroups(struct task_struct *task);
void iocm_allow_interrupt(void);
void iocm_interrupt(struct task_struct *task);
int iocm_task_nice(struct task_struct *task);
void iocm_task_set_nice(struct task_struct *task, int nice);
unsigned int iocm_task_priority(struct task_struct *task);
int iocm_task_set_priority(struct task_struct *task, unsigned int priority);
void iocm_prepare_sleep(void);
void iocm_cancel_sleep(void);
void iocm_sleep(u64 timeout);
u64 iocm_run_delay(void);
void iocm_relax(void);
void iocm_breathe(void);
bool iocm_killed(void);
bool iocm_cpu_possible(unsigned int cpu);
bool iocm_cpu_online(unsigned int cpu);
int iocm_cpu_node(int cpu);
u64 iocm_cycles(void);
u64 iocm_now(void);
u64 iocm_to_cycles(u64 nanoseconds);
u64 iocm_from_cycles(u64 cycles);
void iocm_read_softirqs(struct iocm_softirqs *softirqs);

/* affinity.c: the CPUs of threads, kept over CPU hotplug */

struct iocm_affinity;

int iocm_affinity_register(void);
void iocm_affinity_unregister(void);
struct iocm_affinity *iocm_affinity_alloc(void);
void iocm_affinity_free(struct iocm_affinity *affinity);
int iocm_affinity_begin(struct iocm_affinity *affinity, struct task_struct *task,
			const struct cpumask *mask);
void iocm_affinity_end(struct iocm_affinity *affinity);
int iocm_affinity_set(struct iocm_affinity *affinity, const struct cpumask *mask);
bool iocm_affinity_look(struct iocm_affinity *affinity);
bool iocm_affinity_displaced(struct iocm_affinity *affinity);
size_t iocm_affinity_wanted(struct iocm_affinity *affinity, char *text, size_t size);
int iocm_affinity_announce(struct iocm_affinity *affinity, struct kobject *directory,
			   const char *name);

/* trace.c: trace events */

/* Why a virtqueue leaves its worker. */
enum iocm_leave_reason {
	IOCM_LEAVE_FAULT,
	IOCM_LEAVE_BACKEND,
	IOCM_LEAVE_HOME,
};

/* control.c: /sys/class/vhost and the files that are not in a directory of one object */

/* The files, as the callbacks name them. */
enum iocm_file {
	IOCM_FILE_EPOCH,
	IOCM_FILE_CYCLES,
	IOCM_FILE_NR_IOCORES,
	IOCM_FILE_IOCORES_UTILIZATION,
	IOCM_FILE_WORKER_CREATE,
	IOCM_FILE_WORKER_REMOVE,
	IOCM_FILE_WORKER_DEFAULT,
	IOCM_FILE_WORKER_PLACEMENT,
};

/* The directories, as iocm_control_directory() names them. */
enum iocm_directory {
	IOCM_DIRECTORY_WORKER,
	IOCM_DIRECTORY_DEV,
	IOCM_DIRECTORY_VQ,
	IOCM_DIRECTORIES,
};

struct iocm_control_ops {
	ssize_t (*show)(const void *context, int file, char *page);
	ssize_t (*store)(const void *context, int file, const char *text, size_t len);
	/* A part of the binary snapshot. */
	ssize_t (*snapshot_read)(const void *context, u64 position, char *bytes, size_t len);
	/* A page of it, to which the caller owns a reference then, or NULL if there is no such page. */
	struct page *(*snapshot_page)(const void *context, unsigned long index);
};

/* The most pages of the binary snapshot. */
#define IOCM_SNAPSHOT_PAGES_MAX 4096

int iocm_control_register(const struct iocm_control_ops *ops, const void *context);
void iocm_control_unregister(void);
struct kobject *iocm_control_directory(enum iocm_directory directory);
void *iocm_page_address(struct page *page);
void iocm_page_take(struct page *page);

/* parameters.c: module parameters */

/* When virtqueues are polled, as module parameter poll counts its values. */
enum iocm_poll_mode {
	IOCM_POLL_NEVER,
	IOCM_POLL_ALWAYS,
	IOCM_POLL_AUTO,
};

const char *iocm_device_name(void);
enum iocm_poll_mode iocm_poll_mode(void);
unsigned int iocm_slice_us(void);
unsigned int iocm_poll_start_us(void);
unsigned int iocm_poll_idle_us(void);
unsigned int iocm_poll_recheck_us(void);
unsigned int iocm_wake_pending_us(void);
unsigned int iocm_balance_us(void);
unsigned int iocm_park_load(void);
unsigned int iocm_park_after_us(void);
unsigned int iocm_max_woken(void);
unsigned int iocm_max_mem_regions(void);
unsigned int iocm_max_iotlb_entries(void);
bool iocm_fork_from_owner_default(void);
int iocm_worker_nice(void);
unsigned int iocm_worker_priority(void);

#endif
