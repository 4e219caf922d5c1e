// SPDX-License-Identifier: GPL-2.0
/*
 * The CPUs of a thread, kept over CPU hotplug.
 *
 * When the last CPU goes offline on which a thread may run, the scheduler lets it run anywhere, and
 * forgets what was wanted. Here it is remembered: the thread is *displaced*, and goes back when one
 * of its CPUs does. What operators do to the thread by its number counts as well: masks that differ
 * from what is expected are taken for their wish, unless none of the expected CPUs runs, in which
 * case the scheduler may have chosen.
 *
 * Whoever changes the mask sets it first and writes down afterwards what is expected. A look that
 * comes in between takes the new mask for somebody's wish, which leads to the same end.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/sched/isolation.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/sysfs.h>
#include <linux/topology.h>

#include "shim.h"

struct iocm_affinity {
	struct hlist_node node;
	/* NULL until it may be moved. */
	struct task_struct *task;
	/* Who changes the mask of the thread holds this, with the CPUs locked. */
	struct mutex changing;
	/* Protects the rest; the thread takes it, so it is held for a few instructions only. */
	spinlock_t lock;
	cpumask_var_t wanted;
	/* Where a displaced thread runs. */
	cpumask_var_t refuge;
	bool displaced;
	/* Tells those who poll it that displaced has changed. */
	struct kernfs_node *file;
	/* The thread's own: the mask that it saw last. */
	cpumask_var_t seen;
	/* For who holds the mutex. */
	cpumask_var_t scratch;
};

static enum cpuhp_state affinity_state;

static void affinity_set_displaced(struct iocm_affinity *affinity, bool displaced)
{
	lockdep_assert_held(&affinity->lock);
	if (affinity->displaced == displaced)
		return;
	WRITE_ONCE(affinity->displaced, displaced);
	if (affinity->file)
		sysfs_notify_dirent(affinity->file);
}

static const struct cpumask *affinity_expected(struct iocm_affinity *affinity)
{
	return affinity->displaced ? affinity->refuge : affinity->wanted;
}

/*
 * Whether the scheduler lets threads stay where @mask says. It sends kernel threads away from a CPU
 * as soon as it is dying, which is before it is not active any more.
 */
static bool affinity_holds(const struct cpumask *mask)
{
	unsigned int cpu;

	for_each_cpu_and(cpu, mask, cpu_active_mask) {
		if (!cpu_dying(cpu))
			return true;
	}
	return false;
}

/* Takes @mask, which the thread has, for somebody's wish if it is one. */
static void affinity_adopt(struct iocm_affinity *affinity, const struct cpumask *mask)
{
	const struct cpumask *expected = affinity_expected(affinity);

	lockdep_assert_held(&affinity->lock);
	if (cpumask_equal(mask, expected) || !affinity_holds(expected))
		return;
	cpumask_copy(affinity->wanted, mask);
	affinity_set_displaced(affinity, false);
}

static void affinity_mask(struct task_struct *task, struct cpumask *mask)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&task->pi_lock, flags);
	cpumask_copy(mask, &task->cpus_mask);
	raw_spin_unlock_irqrestore(&task->pi_lock, flags);
}

/*
 * Lets @task run on the CPUs of @mask. The scheduler would leave only those that sched_setaffinity()
 * allowed last: its memory of that goes, since what was set there is in @wanted.
 */
static int affinity_move(struct task_struct *task, const struct cpumask *mask)
{
	cpumask_t *user = NULL;
	unsigned long flags;

	raw_spin_lock_irqsave(&task->pi_lock, flags);
	swap(task->user_cpus_ptr, user);
	raw_spin_unlock_irqrestore(&task->pi_lock, flags);
	kfree(user);
	return set_cpus_allowed_ptr(task, mask);
}

/* Whether another CPU of @mask than @cpu is online. */
static bool affinity_survives(const struct cpumask *mask, unsigned int cpu)
{
	return cpumask_any_and_but(mask, cpu_online_mask, cpu) < nr_cpu_ids;
}

/* Chooses where to run without @cpu: on its node, outside of isolated CPUs, or anywhere. */
static void affinity_choose_refuge(struct cpumask *mask, unsigned int cpu)
{
	int node = cpu_to_node(cpu);

	rcu_read_lock();
	cpumask_copy(mask, housekeeping_cpumask(HK_TYPE_DOMAIN));
	if (node != NUMA_NO_NODE)
		cpumask_and(mask, mask, cpumask_of_node(node));
	if (!affinity_survives(mask, cpu))
		cpumask_copy(mask, housekeeping_cpumask(HK_TYPE_DOMAIN));
	rcu_read_unlock();
	if (!affinity_survives(mask, cpu))
		cpumask_copy(mask, cpu_possible_mask);
}

/* @cpu is online, and not active yet. */
static int affinity_online(unsigned int cpu, struct hlist_node *node)
{
	struct iocm_affinity *affinity = hlist_entry(node, struct iocm_affinity, node);
	bool returns;

	mutex_lock(&affinity->changing);
	if (affinity->task) {
		spin_lock(&affinity->lock);
		affinity_mask(affinity->task, affinity->scratch);
		affinity_adopt(affinity, affinity->scratch);
		returns = affinity->displaced && cpumask_test_cpu(cpu, affinity->wanted);
		cpumask_copy(affinity->scratch, affinity->wanted);
		spin_unlock(&affinity->lock);
		if (returns && !affinity_move(affinity->task, affinity->scratch)) {
			spin_lock(&affinity->lock);
			affinity_set_displaced(affinity, false);
			spin_unlock(&affinity->lock);
		}
	}
	mutex_unlock(&affinity->changing);
	return 0;
}

/* @cpu is still online, and not active any more. */
static int affinity_offline(unsigned int cpu, struct hlist_node *node)
{
	struct iocm_affinity *affinity = hlist_entry(node, struct iocm_affinity, node);
	const struct cpumask *expected;
	bool lost;

	mutex_lock(&affinity->changing);
	if (affinity->task) {
		spin_lock(&affinity->lock);
		affinity_mask(affinity->task, affinity->scratch);
		affinity_adopt(affinity, affinity->scratch);
		expected = affinity_expected(affinity);
		lost = cpumask_test_cpu(cpu, expected) && !affinity_survives(expected, cpu);
		spin_unlock(&affinity->lock);
		if (lost) {
			affinity_choose_refuge(affinity->scratch, cpu);
			/* If this fails the thread is where the scheduler put it. */
			affinity_move(affinity->task, affinity->scratch);
			spin_lock(&affinity->lock);
			cpumask_copy(affinity->refuge, affinity->scratch);
			affinity_set_displaced(affinity, true);
			spin_unlock(&affinity->lock);
		}
	}
	mutex_unlock(&affinity->changing);
	return 0;
}

/* Begins to follow CPUs, before the first thread is made. */
int iocm_affinity_register(void)
{
	int state;

	state = cpuhp_setup_state_multi(CPUHP_AP_ONLINE_DYN, "vhost_iocm:online", affinity_online,
					affinity_offline);
	if (state < 0)
		return state;
	affinity_state = state;
	return 0;
}

/* Ends it, after the last thread is gone. */
void iocm_affinity_unregister(void)
{
	cpuhp_remove_multi_state(affinity_state);
}

static void affinity_free_masks(struct iocm_affinity *affinity)
{
	free_cpumask_var(affinity->wanted);
	free_cpumask_var(affinity->refuge);
	free_cpumask_var(affinity->seen);
	free_cpumask_var(affinity->scratch);
}

/* For a thread that is not there yet. */
struct iocm_affinity *iocm_affinity_alloc(void)
{
	struct iocm_affinity *affinity = kzalloc_obj(*affinity);

	if (!affinity)
		return NULL;
	mutex_init(&affinity->changing);
	spin_lock_init(&affinity->lock);
	if (!zalloc_cpumask_var(&affinity->wanted, GFP_KERNEL) ||
	    !zalloc_cpumask_var(&affinity->refuge, GFP_KERNEL) ||
	    !zalloc_cpumask_var(&affinity->seen, GFP_KERNEL) ||
	    !zalloc_cpumask_var(&affinity->scratch, GFP_KERNEL) ||
	    cpuhp_state_add_instance_nocalls(affinity_state, &affinity->node)) {
		affinity_free_masks(affinity);
		kfree(affinity);
		return NULL;
	}
	return affinity;
}

/* The thread is gone, or was never there. */
void iocm_affinity_free(struct iocm_affinity *affinity)
{
	cpuhp_state_remove_instance_nocalls(affinity_state, &affinity->node);
	if (affinity->file)
		sysfs_put(affinity->file);
	affinity_free_masks(affinity);
	kfree(affinity);
}

/*
 * Lets @task, which was made just now and not woken yet, run on the CPUs of @mask, or on any if
 * that is NULL. Fails with ENODEV when none of them is online.
 */
int iocm_affinity_begin(struct iocm_affinity *affinity, struct task_struct *task,
			const struct cpumask *mask)
{
	int err = 0;

	cpus_read_lock();
	mutex_lock(&affinity->changing);
	if (!mask) {
		cpumask_copy(affinity->wanted, cpu_possible_mask);
	} else if (cpumask_intersects(mask, cpu_online_mask)) {
		kthread_bind(task, cpumask_first(mask));
		err = affinity_move(task, mask);
		cpumask_copy(affinity->wanted, mask);
	} else {
		err = -ENODEV;
	}
	if (!err)
		affinity->task = task;
	mutex_unlock(&affinity->changing);
	cpus_read_unlock();
	return err;
}

/* Follows CPUs no more: the thread is about to end. */
void iocm_affinity_end(struct iocm_affinity *affinity)
{
	mutex_lock(&affinity->changing);
	affinity->task = NULL;
	mutex_unlock(&affinity->changing);
}

/*
 * Lets the thread run on the CPUs of @mask. Fails with ENODEV when none of them is online, which
 * may have been otherwise when the caller looked.
 */
int iocm_affinity_set(struct iocm_affinity *affinity, const struct cpumask *mask)
{
	int err = -ENODEV;

	cpus_read_lock();
	mutex_lock(&affinity->changing);
	if (affinity->task && cpumask_intersects(mask, cpu_online_mask))
		err = affinity_move(affinity->task, mask);
	if (!err) {
		spin_lock(&affinity->lock);
		cpumask_copy(affinity->wanted, mask);
		affinity_set_displaced(affinity, false);
		spin_unlock(&affinity->lock);
	}
	mutex_unlock(&affinity->changing);
	cpus_read_unlock();
	return err;
}

/* Notes what others did to the mask, and says whether it has changed. Called by the thread. */
bool iocm_affinity_look(struct iocm_affinity *affinity)
{
	if (likely(cpumask_equal(&current->cpus_mask, affinity->seen)))
		return false;
	spin_lock(&affinity->lock);
	affinity_mask(current, affinity->seen);
	affinity_adopt(affinity, affinity->seen);
	spin_unlock(&affinity->lock);
	return true;
}

bool iocm_affinity_displaced(struct iocm_affinity *affinity)
{
	return READ_ONCE(affinity->displaced);
}

/* Prints the CPUs that are wanted, as a list of ranges, into @text of @size bytes. */
size_t iocm_affinity_wanted(struct iocm_affinity *affinity, char *text, size_t size)
{
	size_t len;

	mutex_lock(&affinity->changing);
	spin_lock(&affinity->lock);
	if (affinity->task) {
		/* A thread that sleeps has not noted it. */
		affinity_mask(affinity->task, affinity->scratch);
		affinity_adopt(affinity, affinity->scratch);
	}
	len = scnprintf(text, size, "%*pbl\n", cpumask_pr_args(affinity->wanted));
	spin_unlock(&affinity->lock);
	mutex_unlock(&affinity->changing);
	return len;
}

/* Wakes those who poll file @name of @directory when the thread is displaced or goes back. */
int iocm_affinity_announce(struct iocm_affinity *affinity, struct kobject *directory,
			   const char *name)
{
	struct kernfs_node *file = sysfs_get_dirent(directory->sd, name);

	if (!file)
		return -ENOENT;
	spin_lock(&affinity->lock);
	swap(affinity->file, file);
	spin_unlock(&affinity->lock);
	if (file)
		sysfs_put(file);
	return 0;
}
