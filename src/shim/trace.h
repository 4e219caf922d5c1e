/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Trace events, for perf and bpftrace. They cost one instruction that does nothing while they are
 * off.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vhost_iocm

#if !defined(VHOST_IOCM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VHOST_IOCM_TRACE_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(iocm_virtqueue,
	TP_PROTO(u32 device, u32 index),
	TP_ARGS(device, index),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, index)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->index = index;
	),
	TP_printk("vq.%u.%u", __entry->device, __entry->index)
);

/* The guest has notified. */
DEFINE_EVENT(iocm_virtqueue, iocm_kick,
	TP_PROTO(u32 device, u32 index), TP_ARGS(device, index));

/* A polled virtqueue is left to its guest to notify. */
DEFINE_EVENT(iocm_virtqueue, iocm_park,
	TP_PROTO(u32 device, u32 index), TP_ARGS(device, index));

/* The home thread is done, and the worker serves the virtqueue again. */
DEFINE_EVENT(iocm_virtqueue, iocm_return,
	TP_PROTO(u32 device, u32 index), TP_ARGS(device, index));

DECLARE_EVENT_CLASS(iocm_virtqueue_flag,
	TP_PROTO(u32 device, u32 index, bool flag),
	TP_ARGS(device, index, flag),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, index)
		__field(bool, flag)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->index = index;
		__entry->flag = flag;
	),
	TP_printk("vq.%u.%u %d", __entry->device, __entry->index, __entry->flag)
);

/* A worker has looked at a polled virtqueue; the flag says whether there was something. */
DEFINE_EVENT(iocm_virtqueue_flag, iocm_poll,
	TP_PROTO(u32 device, u32 index, bool flag), TP_ARGS(device, index, flag));

/* Chains were given back; the flag says whether the guest was interrupted. */
DEFINE_EVENT(iocm_virtqueue_flag, iocm_interrupt,
	TP_PROTO(u32 device, u32 index, bool flag), TP_ARGS(device, index, flag));

/* Why a virtqueue leaves its worker. */
TRACE_DEFINE_ENUM(IOCM_LEAVE_FAULT);
TRACE_DEFINE_ENUM(IOCM_LEAVE_BACKEND);
TRACE_DEFINE_ENUM(IOCM_LEAVE_HOME);

/* The home thread has to serve the virtqueue. */
TRACE_EVENT(iocm_leave,
	TP_PROTO(u32 device, u32 index, u32 reason),
	TP_ARGS(device, index, reason),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, index)
		__field(u32, reason)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->index = index;
		__entry->reason = reason;
	),
	TP_printk("vq.%u.%u %s", __entry->device, __entry->index,
		  __print_symbolic(__entry->reason,
				   { IOCM_LEAVE_FAULT, "fault" },
				   { IOCM_LEAVE_BACKEND, "backend" },
				   { IOCM_LEAVE_HOME, "home" }))
);

/* A worker begins a slice. */
TRACE_EVENT(iocm_slice_begin,
	TP_PROTO(u32 worker, u32 device, u32 index),
	TP_ARGS(worker, device, index),
	TP_STRUCT__entry(
		__field(u32, worker)
		__field(u32, device)
		__field(u32, index)
	),
	TP_fast_assign(
		__entry->worker = worker;
		__entry->device = device;
		__entry->index = index;
	),
	TP_printk("w.%u vq.%u.%u", __entry->worker, __entry->device, __entry->index)
);

/* A worker has ended a slice, for which it charges so many nanoseconds. */
TRACE_EVENT(iocm_slice_end,
	TP_PROTO(u32 worker, u32 device, u32 index, u64 packets, u64 bytes, u64 nanoseconds),
	TP_ARGS(worker, device, index, packets, bytes, nanoseconds),
	TP_STRUCT__entry(
		__field(u32, worker)
		__field(u32, device)
		__field(u32, index)
		__field(u64, packets)
		__field(u64, bytes)
		__field(u64, nanoseconds)
	),
	TP_fast_assign(
		__entry->worker = worker;
		__entry->device = device;
		__entry->index = index;
		__entry->packets = packets;
		__entry->bytes = bytes;
		__entry->nanoseconds = nanoseconds;
	),
	TP_printk("w.%u vq.%u.%u packets=%llu bytes=%llu ns=%llu", __entry->worker,
		  __entry->device, __entry->index, __entry->packets, __entry->bytes,
		  __entry->nanoseconds)
);

/* A virtqueue got another worker. */
TRACE_EVENT(iocm_move,
	TP_PROTO(u32 device, u32 index, u32 from, u32 to),
	TP_ARGS(device, index, from, to),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, index)
		__field(u32, from)
		__field(u32, to)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->index = index;
		__entry->from = from;
		__entry->to = to;
	),
	TP_printk("vq.%u.%u w.%u w.%u", __entry->device, __entry->index, __entry->from,
		  __entry->to)
);

DECLARE_EVENT_CLASS(iocm_worker,
	TP_PROTO(u32 worker),
	TP_ARGS(worker),
	TP_STRUCT__entry(
		__field(u32, worker)
	),
	TP_fast_assign(
		__entry->worker = worker;
	),
	TP_printk("w.%u", __entry->worker)
);

/* A worker has nothing to do. */
DEFINE_EVENT(iocm_worker, iocm_sleep, TP_PROTO(u32 worker), TP_ARGS(worker));

/* A worker has something to do again. */
DEFINE_EVENT(iocm_worker, iocm_wake, TP_PROTO(u32 worker), TP_ARGS(worker));

DECLARE_EVENT_CLASS(iocm_standby,
	TP_PROTO(u32 worker, u32 other, u32 virtqueues),
	TP_ARGS(worker, other, virtqueues),
	TP_STRUCT__entry(
		__field(u32, worker)
		__field(u32, other)
		__field(u32, virtqueues)
	),
	TP_fast_assign(
		__entry->worker = worker;
		__entry->other = other;
		__entry->virtqueues = virtqueues;
	),
	TP_printk("w.%u w.%u virtqueues=%u", __entry->worker, __entry->other,
		  __entry->virtqueues)
);

/* A parked worker is woken and gets so many virtqueues of another, which is congested. */
DEFINE_EVENT(iocm_standby, iocm_standby_wake,
	TP_PROTO(u32 worker, u32 other, u32 virtqueues), TP_ARGS(worker, other, virtqueues));

/* A worker is parked again, and another gets the virtqueues that it has served. */
DEFINE_EVENT(iocm_standby, iocm_standby_park,
	TP_PROTO(u32 worker, u32 other, u32 virtqueues), TP_ARGS(worker, other, virtqueues));

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
