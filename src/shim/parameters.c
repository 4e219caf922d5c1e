// SPDX-License-Identifier: GPL-2.0
/*
 * Module parameters that are text, which the kernel crate's module! macro has no type for.
 */
#include <linux/moduleparam.h>

#include "shim.h"

static char *device;
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "name of the node in /dev, with a dynamic minor, to run beside vhost_net (default: vhost-net, minor 238)");

const char *iocm_device_name(void)
{
	return device;
}
