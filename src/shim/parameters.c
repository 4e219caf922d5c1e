// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters. The kernel crate's module! macro has neither text nor values with bounds.
 */
#include <linux/kstrtox.h>
#include <linux/moduleparam.h>
#include <linux/sched/prio.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/vhost.h>

#include "shim.h"

static char *device;
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "name of the node in /dev, with a dynamic minor, to run beside vhost_net (default: vhost-net, minor 238)");

const char *iocm_device_name(void)
{
	return device;
}

static const char * const poll_modes[] = {
	[IOCM_POLL_NEVER] = "0",
	[IOCM_POLL_ALWAYS] = "1",
	[IOCM_POLL_AUTO] = "auto",
};

static unsigned int poll = IOCM_POLL_AUTO;

static int poll_set(const char *text, const struct kernel_param *param)
{
	int mode = __sysfs_match_string(poll_modes, ARRAY_SIZE(poll_modes), text);

	if (mode < 0)
		return mode;
	WRITE_ONCE(poll, mode);
	return 0;
}

static int poll_get(char *text, const struct kernel_param *param)
{
	return sysfs_emit(text, "%s\n", poll_modes[READ_ONCE(poll)]);
}

static const struct kernel_param_ops poll_ops = {
	.set = poll_set,
	.get = poll_get,
};

module_param_cb(poll, &poll_ops, NULL, 0644);
MODULE_PARM_DESC(poll, "whether new virtqueues are polled: 0, 1, or auto (default)");

enum iocm_poll_mode iocm_poll_mode(void)
{
	return READ_ONCE(poll);
}

/* A number between two bounds. */
#define UINT_PARAMETER(_name, _default, _min, _max, _description)				\
	UINT_PARAMETER_MODE(_name, _default, _min, _max, 0644, _description)

#define UINT_PARAMETER_MODE(_name, _default, _min, _max, _mode, _description)			\
static unsigned int _name = _default;								\
static int _name##_set(const char *text, const struct kernel_param *param)			\
{												\
	return param_set_uint_minmax(text, param, _min, _max);					\
}												\
static const struct kernel_param_ops _name##_ops = {						\
	.set = _name##_set,									\
	.get = param_get_uint,									\
};												\
module_param_cb(_name, &_name##_ops, &_name, _mode);						\
MODULE_PARM_DESC(_name, _description);								\
unsigned int iocm_##_name(void)									\
{												\
	return READ_ONCE(_name);								\
}

UINT_PARAMETER(slice_us, 200, 10, 10000,
	       "longest time for which one virtqueue is served before the others, in microseconds, 10 to 10000 (default: 200)")
UINT_PARAMETER(poll_start_us, 50, 1, 1000000,
	       "polling starts in mode auto when the mean time between two pieces of work is shorter, in microseconds, 1 to 1000000 (default: 50)")
UINT_PARAMETER(poll_idle_us, 1000, 1, 10000000,
	       "a polled virtqueue without work for so long is left to its guest to notify, in microseconds, 1 to 10000000 (default: 1000)")
UINT_PARAMETER(poll_recheck_us, 1000, 10, 1000000,
	       "a polled virtqueue is looked at through its owner's address space at least so often, in microseconds, 10 to 1000000 (default: 1000)")
UINT_PARAMETER(wake_pending_us, 1000, 10, 1000000,
	       "a parked worker is woken when work of its group has waited for longer at two checks, in microseconds, 10 to 1000000 (default: 1000)")
UINT_PARAMETER(balance_us, 1000, 100, 1000000,
	       "time between these checks, in microseconds, 100 to 1000000 (default: 1000)")
UINT_PARAMETER(park_load, 600, 0, 1000,
	       "a woken worker is parked when it and the one that it helps have together at most this load, in parts per thousand, 0 to 1000 (default: 600)")
UINT_PARAMETER(park_after_us, 100000, 1000, 60000000,
	       "for so long, in microseconds, 1000 to 60000000 (default: 100000)")
UINT_PARAMETER(max_woken, 1024, 0, 1024,
	       "workers that may be woken at once, 0 to 1024; 0 wakes none (default: 1024)")
/* Of the same names as stock vhost's, which cannot be changed while it is loaded either. */
UINT_PARAMETER_MODE(max_mem_regions, 64, 1, 1024, 0444,
		    "regions that a memory table may have, 1 to 1024 (default: 64)")
UINT_PARAMETER_MODE(max_iotlb_entries, 2048, 1, 65536, 0444,
		    "translations that a device IOTLB may have, 1 to 65536 (default: 2048)")

static bool fork_from_owner_default = VHOST_FORK_OWNER_TASK;

#ifdef CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL
module_param(fork_from_owner_default, bool, 0444);
MODULE_PARM_DESC(fork_from_owner_default, "1: the home threads of new devices are threads of their owners (default); 0: kernel threads");
#endif

bool iocm_fork_from_owner_default(void)
{
	return fork_from_owner_default;
}

UINT_PARAMETER(worker_priority, 0, 0, MAX_RT_PRIO - 1,
	       "real-time priority of new workers, 1 to 99, or 0 for none (default: 0)")

static int worker_nice;

static int worker_nice_set(const char *text, const struct kernel_param *param)
{
	int nice, err;

	err = kstrtoint(text, 0, &nice);
	if (err)
		return err;
	if (nice < MIN_NICE || nice > MAX_NICE)
		return -EINVAL;
	WRITE_ONCE(worker_nice, nice);
	return 0;
}

static const struct kernel_param_ops worker_nice_ops = {
	.set = worker_nice_set,
	.get = param_get_int,
};

module_param_cb(worker_nice, &worker_nice_ops, &worker_nice, 0644);
MODULE_PARM_DESC(worker_nice, "nice value of new workers, -20 to 19 (default: 0)");

int iocm_worker_nice(void)
{
	return READ_ONCE(worker_nice);
}
