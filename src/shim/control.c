// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/class/vhost: the class, its three directories, and the files that do not belong to one
 * worker, device or virtqueue. The kernel builds such tables with macros, and the operations of a
 * mapping are tables as well.
 */
#include <linux/device.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/sysfs.h>

#include "shim.h"

static const struct iocm_control_ops *control_ops;
static const void *control_context;
static struct device *control_directories[IOCM_DIRECTORIES];

#define CLASS_FILE_SHOW(_name, _file)								\
static ssize_t _name##_show(const struct class *class, const struct class_attribute *attr,	\
			    char *page)								\
{												\
	return control_ops->show(control_context, _file, page);					\
}

#define CLASS_FILE_STORE(_name, _file)								\
static ssize_t _name##_store(const struct class *class, const struct class_attribute *attr,	\
			     const char *text, size_t len)					\
{												\
	return control_ops->store(control_context, _file, text, len);				\
}

#define DEVICE_FILE_SHOW(_name, _file)								\
static ssize_t _name##_show(struct device *dev, struct device_attribute *attr, char *page)	\
{												\
	return control_ops->show(control_context, _file, page);					\
}

#define DEVICE_FILE_STORE(_name, _file)								\
static ssize_t _name##_store(struct device *dev, struct device_attribute *attr,		\
			     const char *text, size_t len)					\
{												\
	return control_ops->store(control_context, _file, text, len);				\
}

CLASS_FILE_SHOW(epoch, IOCM_FILE_EPOCH)
CLASS_FILE_STORE(epoch, IOCM_FILE_EPOCH)
static CLASS_ATTR_RW(epoch);

CLASS_FILE_SHOW(cycles, IOCM_FILE_CYCLES)
static CLASS_ATTR_RO(cycles);

CLASS_FILE_SHOW(nr_iocores, IOCM_FILE_NR_IOCORES)
static CLASS_ATTR_RO(nr_iocores);

CLASS_FILE_SHOW(iocores_utilization, IOCM_FILE_IOCORES_UTILIZATION)
static CLASS_ATTR_RO(iocores_utilization);

static struct attribute *control_attrs[] = {
	&class_attr_epoch.attr,
	&class_attr_cycles.attr,
	&class_attr_nr_iocores.attr,
	&class_attr_iocores_utilization.attr,
	NULL,
};

/*
 * The binary snapshot, read and mapped.
 *
 * A page is mapped when it is touched, with a reference: only that much of a mapping is the
 * module's. kernfs puts operations of its own before ours, calls ours only as long as the file is
 * there, and when it is removed waits for them and takes the pages out of all mappings. A fault
 * that is about to put one in then keeps the page, and nothing else.
 */
static ssize_t snapshot_read(struct file *file, struct kobject *kobj,
			     const struct bin_attribute *attr, char *bytes, loff_t position,
			     size_t len)
{
	return control_ops->snapshot_read(control_context, position, bytes, len);
}

static vm_fault_t snapshot_fault(struct vm_fault *vmf)
{
	vmf->page = control_ops->snapshot_page(control_context, vmf->pgoff);
	return vmf->page ? 0 : VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct snapshot_vm_ops = {
	.fault = snapshot_fault,
};

/*
 * Pages that are not there yet may be mapped: they can be touched as soon as they are. Private
 * mappings, which promise nothing about later changes, are refused.
 */
static int snapshot_mmap(struct file *file, struct kobject *kobj, const struct bin_attribute *attr,
			 struct vm_area_struct *vma)
{
	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff > IOCM_SNAPSHOT_PAGES_MAX ||
	    vma_pages(vma) > IOCM_SNAPSHOT_PAGES_MAX - vma->vm_pgoff)
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE);
	vma->vm_ops = &snapshot_vm_ops;
	return 0;
}

static const struct bin_attribute snapshot_attr = {
	.attr = { .name = "snapshot", .mode = 0444 },
	.read = snapshot_read,
	.mmap = snapshot_mmap,
};

static const struct bin_attribute *const control_bin_attrs[] = {
	&snapshot_attr,
	NULL,
};

static const struct attribute_group control_group = {
	.attrs = control_attrs,
	.bin_attrs = control_bin_attrs,
};
__ATTRIBUTE_GROUPS(control);

DEVICE_FILE_SHOW(create, IOCM_FILE_WORKER_CREATE)
DEVICE_FILE_STORE(create, IOCM_FILE_WORKER_CREATE)
static DEVICE_ATTR_RW(create);

DEVICE_FILE_STORE(remove, IOCM_FILE_WORKER_REMOVE)
static DEVICE_ATTR_WO(remove);

DEVICE_FILE_SHOW(default, IOCM_FILE_WORKER_DEFAULT)
DEVICE_FILE_STORE(default, IOCM_FILE_WORKER_DEFAULT)
static DEVICE_ATTR_RW(default);

DEVICE_FILE_SHOW(placement, IOCM_FILE_WORKER_PLACEMENT)
DEVICE_FILE_STORE(placement, IOCM_FILE_WORKER_PLACEMENT)
static DEVICE_ATTR_RW(placement);

static struct attribute *worker_attrs[] = {
	&dev_attr_create.attr,
	&dev_attr_remove.attr,
	&dev_attr_default.attr,
	&dev_attr_placement.attr,
	NULL,
};
ATTRIBUTE_GROUPS(worker);

static void class_free(const struct class *class)
{
}

static struct class vhost_class = {
	.name = "vhost",
	.class_groups = control_groups,
	.class_release = class_free,
};

static struct device *create_directory(const char *name, const struct attribute_group **groups)
{
	return device_create_with_groups(&vhost_class, NULL, MKDEV(0, 0), NULL, groups, "%s",
					 name);
}

/*
 * Creates the class. The callbacks of @ops run with @context from now on, until
 * iocm_control_unregister() has returned.
 */
int iocm_control_register(const struct iocm_control_ops *ops, const void *context)
{
	static const char * const names[IOCM_DIRECTORIES] = {
		[IOCM_DIRECTORY_WORKER] = "worker",
		[IOCM_DIRECTORY_DEV] = "dev",
		[IOCM_DIRECTORY_VQ] = "vq",
	};
	struct device *dev;
	int err, i;

	control_ops = ops;
	control_context = context;
	err = class_register(&vhost_class);
	if (err)
		return err;

	for (i = 0; i < IOCM_DIRECTORIES; i++) {
		dev = create_directory(names[i], i == IOCM_DIRECTORY_WORKER ? worker_groups : NULL);
		if (IS_ERR(dev)) {
			iocm_control_unregister();
			return PTR_ERR(dev);
		}
		control_directories[i] = dev;
	}
	return 0;
}

void iocm_control_unregister(void)
{
	int i;

	for (i = 0; i < IOCM_DIRECTORIES; i++) {
		if (control_directories[i])
			device_unregister(control_directories[i]);
		control_directories[i] = NULL;
	}
	class_unregister(&vhost_class);
}

struct kobject *iocm_control_directory(enum iocm_directory directory)
{
	return &control_directories[directory]->kobj;
}

/* Where the kernel has mapped @page, which was allocated for its own use. */
void *iocm_page_address(struct page *page)
{
	return page_address(page);
}

/* Takes one more reference to @page. */
void iocm_page_take(struct page *page)
{
	get_page(page);
}
