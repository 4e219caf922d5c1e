// SPDX-License-Identifier: GPL-2.0
/*
 * Prints how often this machine's time stamp counter counts in a millisecond,
 * which is also what an emulated machine's does: QEMU passes it through.
 */

#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

/* A reading of both clocks, of which the counter's was within `gap` counts. */
struct reading {
	uint64_t ticks;
	uint64_t gap;
	int64_t ns;
};

/* The closest of some readings, so that one during which the thread did not run is not taken. */
static struct reading read_both(void)
{
	struct reading best = { .gap = UINT64_MAX };

	for (int i = 0; i < 100; i++) {
		struct timespec now;
		uint64_t before = __rdtsc();

		clock_gettime(CLOCK_MONOTONIC_RAW, &now);

		uint64_t gap = __rdtsc() - before;

		if (gap < best.gap)
			best = (struct reading) {
				.ticks = before + gap / 2,
				.gap = gap,
				.ns = now.tv_sec * 1000000000LL + now.tv_nsec,
			};
	}
	return best;
}

int main(void)
{
	const struct timespec pause = { .tv_nsec = 200000000 };
	struct reading first = read_both();

	nanosleep(&pause, NULL);

	struct reading last = read_both();

	printf("%.0f\n", (last.ticks - first.ticks) * 1e6 / (last.ns - first.ns));
	return 0;
}
