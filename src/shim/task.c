// SPDX-License-Identifier: GPL-2.0
/*
 * Threads and processors, where the kernel offers macros and static inlines only.
 */
#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/kernel_stat.h>
#include <linux/math64.h>
#include <linux/processor.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/timex.h>
#include <linux/topology.h>
#include <uapi/linux/sched/types.h>

#if defined(CONFIG_X86_TSC) && !defined(CONFIG_UML)
#define HAVE_TSC
#include <asm/tsc.h>
#endif

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

/* Prints the CPUs on which @task may run, as a list of ranges, into @text of @size bytes. */
size_t iocm_task_cpus(struct task_struct *task, char *text, size_t size)
{
	return scnprintf(text, size, "%*pbl\n", cpumask_pr_args(task->cpus_ptr));
}

/* Moves @task, a kernel thread of this module, into the cgroups of the current task. */
int iocm_join_cgroups(struct task_struct *task)
{
	return cgroup_attach_task_all(current, task);
}

/*
 * Lets iocm_interrupt() end waits of the current kernel thread, and nobody else: signals of user
 * space are dropped.
 */
void iocm_allow_interrupt(void)
{
	allow_kernel_signal(SIGKILL);
}

/* From now on @task, a kernel thread that has allowed it, waits for no user memory any more. */
void iocm_interrupt(struct task_struct *task)
{
	send_sig(SIGKILL, task, 1);
}

/* The nice value of @task, which counts while it has no real-time priority. */
int iocm_task_nice(struct task_struct *task)
{
	return task_nice(task);
}

/* @nice is between MIN_NICE and MAX_NICE. */
void iocm_task_set_nice(struct task_struct *task, int nice)
{
	set_user_nice(task, nice);
}

/* The real-time priority of @task, or 0 if it has none. */
unsigned int iocm_task_priority(struct task_struct *task)
{
	unsigned int policy = READ_ONCE(task->policy);

	return policy == SCHED_FIFO || policy == SCHED_RR ? READ_ONCE(task->rt_priority) : 0;
}

/* Gives @task a real-time priority from 1 to 99 (SCHED_FIFO), or takes it away (0). */
int iocm_task_set_priority(struct task_struct *task, unsigned int priority)
{
	const struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = priority ? SCHED_FIFO : SCHED_NORMAL,
		.sched_nice = task_nice(task),
		.sched_priority = priority,
	};

	return sched_setattr_nocheck(task, &attr);
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

/* Sleeps after such an announcement, for at most @timeout nanoseconds. */
void iocm_sleep(u64 timeout)
{
	ktime_t left = ns_to_ktime(timeout);

	schedule_hrtimeout(&left, HRTIMER_MODE_REL);
}

/* The time for which the current thread was ready to run and did not, in nanoseconds. */
u64 iocm_run_delay(void)
{
#ifdef CONFIG_SCHED_INFO
	return current->sched_info.run_delay;
#else
	return 0;
#endif
}

/*
 * Reads the soft interrupts of this CPU. A thread changes its CPU only while it is switched out. Without
 * CONFIG_IRQ_TIME_ACCOUNTING their time is guessed from ticks, which says nothing of a slice.
 */
void iocm_read_softirqs(struct iocm_softirqs *softirqs)
{
	int cpu = get_cpu();

	softirqs->switches = current->nvcsw + current->nivcsw;
	softirqs->count = kstat_cpu_softirqs_sum(cpu);
	softirqs->time = IS_ENABLED(CONFIG_IRQ_TIME_ACCOUNTING) ?
			 READ_ONCE(kcpustat_cpu(cpu).cpustat[CPUTIME_SOFTIRQ]) : 0;
	put_cpu();
}

void iocm_relax(void)
{
	cpu_relax();
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

/* @cpu is below nr_cpu_ids. */
bool iocm_cpu_possible(unsigned int cpu)
{
	return cpu_possible(cpu);
}

/* @cpu is below nr_cpu_ids. */
bool iocm_cpu_online(unsigned int cpu)
{
	return cpu_online(cpu);
}

int iocm_cpu_node(int cpu)
{
	if (cpu < 0 || cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return NUMA_NO_NODE;
	return cpu_to_node(cpu);
}

u64 iocm_now(void)
{
	return local_clock();
}

/* User Mode Linux has no such counter; the cycles of its hosts' interface are nanoseconds. */
#ifdef HAVE_TSC

u64 iocm_cycles(void)
{
	return get_cycles();
}

u64 iocm_to_cycles(u64 nanoseconds)
{
	return mul_u64_u32_div(nanoseconds, tsc_khz, 1000000);
}

u64 iocm_from_cycles(u64 cycles)
{
	return mul_u64_u32_div(cycles, 1000000, tsc_khz);
}

#else

u64 iocm_cycles(void)
{
	return local_clock();
}

u64 iocm_to_cycles(u64 nanoseconds)
{
	return nanoseconds;
}

u64 iocm_from_cycles(u64 cycles)
{
	return cycles;
}

#endif
