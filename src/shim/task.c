// SPDX-License-Identifier: GPL-2.0
/*
 * Threads and processors, where the kernel offers macros and static inlines only.
 */
#include <linux/cpumask.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/timex.h>

#include "shim.h"

/*
 * Lets user space change the affinity of the current thread again after kthread_bind(), as
 * kernel/trace/trace_osnoise.c does. A thread that was never bound would lose its mask when it is
 * first woken, and again whenever the set of isolated CPUs changes (kernel/kthread.c).
 */
void iocm_allow_affinity(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&current->pi_lock, flags);
	current->flags &= ~PF_NO_SETAFFINITY;
	raw_spin_unlock_irqrestore(&current->pi_lock, flags);
}

/* The only CPU on which @task may run, or -1 if there are several. */
int iocm_task_cpu(struct task_struct *task)
{
	unsigned long flags;
	int cpu = -1;

	raw_spin_lock_irqsave(&task->pi_lock, flags);
	if (cpumask_weight(&task->cpus_mask) == 1)
		cpu = cpumask_first(&task->cpus_mask);
	raw_spin_unlock_irqrestore(&task->pi_lock, flags);
	return cpu;
}

/*
 * Announces that the current thread is about to sleep. The store comes with a full barrier, which
 * pairs with the one in wake_up_process(): who wants to wake the thread sees the announcement, or
 * the thread sees what it is to be woken for.
 */
void iocm_prepare_sleep(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
}

void iocm_cancel_sleep(void)
{
	__set_current_state(TASK_RUNNING);
}

/*
 * A point where the thread holds nothing: others may run, and RCU-tasks and live patching learn
 * that a thread which never sleeps has left what it was in.
 */
void iocm_breathe(void)
{
	cond_resched_tasks_rcu_qs();
}

/* Whether the current process is being killed, so that a long system call should end. */
bool iocm_killed(void)
{
	return fatal_signal_pending(current);
}

bool iocm_cpu_possible(int cpu)
{
	return cpu >= 0 && cpu < nr_cpu_ids && cpu_possible(cpu);
}

bool iocm_cpu_online(int cpu)
{
	return cpu >= 0 && cpu < nr_cpu_ids && cpu_online(cpu);
}

u64 iocm_cycles(void)
{
	return get_cycles();
}
